"""Databases on Cloud SQL: what the file may say, who the consumers are there, and their URL."""

import re

import pytest
from fleets import HEAD, TYPE

from shardctl.fleet import cloudsql, gateways, yamlfile
from shardctl.fleet.advice import advice, warnings
from shardctl.fleet.load import fleet_from
from shardctl.fleet.spec_errors import SpecError
from shardctl.fleet.topology import database_secret
from shardctl.shard import databaseurl

INSTANCE = "my-project:europe-west1:orders"


def fleet(*databases, top="", head=HEAD):
    """A fleet with a shard for each `database`, as YAML."""
    step = 1024 // len(databases)
    shards = "".join(
        f"  - {{name: s{number}, slots: {number * step}-{(number + 1) * step - 1}, database: {database}}}\n"
        for number, database in enumerate(databases)
    )
    types = "message_types:\n" + TYPE.format(name="a")
    return fleet_from(yamlfile.parse(f"{head}{top}\n{types}shards:\n{shards}", "f.yaml"))


def on(instance=INSTANCE, database="orders", **more):
    settings = "".join(f", {name}: {value}" for name, value in more.items())
    return f"{{cloud_sql: {{instance: '{instance}', database: {database}{settings}}}}}"


def test_a_proxy_by_tag_is_a_risk_and_one_by_digest_is_none():
    tag = "example.com/proxy:2.26.0"
    (warning,) = warnings(fleet(on(), top=f"cloud_sql: {{proxy: {{image: '{tag}'}}}}\n"))
    assert f"Pin what it is now, as {tag}@sha256:…" in warning
    assert warnings(fleet(on(), top=f"cloud_sql: {{proxy: {{image: '{tag}@sha256:{'0' * 64}'}}}}\n")) == ()
    assert warnings(fleet(on())) == ()
    assert warnings(fleet("{name: own}")) == ()


def url_of(made):
    return cloudsql.url(made, made.shards[0])


def test_the_url_leads_to_the_proxy_without_a_password():
    parsed = databaseurl.parse(url_of(fleet(on())))
    assert (parsed.host, parsed.port, parsed.database, parsed.password) == ("127.0.0.1", 5432, "orders", None)
    assert parsed.username == "orders-s0@my-project.iam"


def test_a_user_of_mysql_is_the_part_before_the_at_sign():
    parsed = databaseurl.parse(url_of(fleet(on(engine="mysql"))))
    assert (parsed.drivername, parsed.username, parsed.port) == ("mysql+pymysql", "orders-s0", 3306)


def test_a_user_of_a_project_of_a_domain():
    made = fleet(on(), head=HEAD.replace("my-project", "example.com:shopping"))
    assert databaseurl.parse(url_of(made)).username == "orders-s0@shopping.example.com.iam"


def test_a_login_with_a_password_keeps_its_secret():
    made = fleet(
        on(iam="false"), "{name: own, cloud_sql: {instance: 'my-project:europe-west1:b', database: b, iam: false}}"
    )
    assert [database_secret(made, shard).name for shard in made.shards] == ["orders-s0-db", "own"]
    assert url_of(made) is None


def test_a_gateway_reaches_each_instance_at_a_port_of_its_own_or_not_at_all():
    outcomes, other = "gateway: {auth: none, outcomes: {}}", "my-project:europe-west1:other"
    assert [made.port for made in gateways.instances(fleet(on(), on(other), top=outcomes))] == [6432, 6433]
    assert gateways.instances(fleet(on(), on(other), top="gateway: {auth: none}")) == ()
    with pytest.raises(SpecError, match=r"a gateway's pod would reach .* at the same port 5432"):
        fleet(on(iam="false"), on(other, iam="false"), top=outcomes)


def test_a_login_by_iam_has_no_secret():
    made = fleet(on())
    assert database_secret(made, made.shards[0]) is None


def test_an_instance_may_be_another_projects():
    cloud_sql = fleet(on("example.com:data-lake:europe-west1:orders")).shards[0].database.cloud_sql
    assert cloudsql.project_of(cloud_sql) == "example.com:data-lake"
    assert cloudsql.name_of(cloud_sql) == "orders"


def test_a_shard_overrides_what_the_fleets_instances_share():
    shared = "cloud_sql: {ip: private, proxy: {image: 'example.com/proxy:1', resources: {cpu: '1', memory: 1Gi}}}"
    made = fleet(on(), on(database="b", ip="psc", proxy="{resources: {cpu: '2'}}"), top=shared)
    first, second = (shard.database.cloud_sql for shard in made.shards)
    assert (first.ip, first.proxy.resources.cpu) == ("private", "1")
    assert (second.ip, second.proxy.resources.cpu) == ("psc", "2")
    assert (second.proxy.image, second.proxy.resources.memory) == ("example.com/proxy:1", "1Gi")


@pytest.mark.parametrize(
    ("databases", "path", "says"),
    [
        ([on("orders")], "shards[0].database.cloud_sql.instance", "project:region:instance"),
        ([on("my-project:orders")], "shards[0].database.cloud_sql.instance", "project:region:instance"),
        ([on("my-project:europe:orders")], "shards[0].database.cloud_sql.instance", "connectionName"),
        ([on(f"{INSTANCE}?port=1")], "shards[0].database.cloud_sql.instance", "connectionName"),
        ([on(database="'a/b'")], "shards[0].database.cloud_sql.database", "a database's name"),
        ([on(engine="sqlite")], "shards[0].database.cloud_sql.engine", "isn't one of 'postgresql' or 'mysql'"),
        ([on(ip="vpn")], "shards[0].database.cloud_sql.ip", "isn't one of 'public', 'private' or 'psc'"),
        ([on(proxy="{image: 'proxy:latest'}")], "shards[0].database.cloud_sql.proxy.image", "other than 'latest'"),
        (["{cloud_sql: {database: a}}"], "shards[0].database.cloud_sql.instance", "is missing"),
        (["{url: 'postgresql://a:secret@b/c'}"], "shards[0].database.url", "fields here: name, key, remote, cloud_sql"),
        ([on()[:-1] + ", name: b}"], "shards[0].database", "set cloud_sql.iam: false"),
        ([on()[:-1] + ", key: b}"], "shards[0].database", "key name a Secret"),
        (["{}"], "shards[0].database", "give the name of the Secret"),
        (["{key: url}"], "shards[0].database", "give the name of the Secret"),
        ([on(iam="false")[:-1] + ", key: b}"], "shards[0].database", "give the name of the Secret"),
        ([on(), on()], "shards[1].database.cloud_sql.database", "is also the database of shard 's0'"),
    ],
)  # fmt: skip
def test_what_leads_to_no_database_is_refused(databases, path, says):
    with pytest.raises(SpecError) as refusal:
        fleet(*databases)
    (line,) = (line for line in str(refusal.value).splitlines() if f": {path}: " in line)
    assert says in line
    assert "secret" not in str(refusal.value)


ON_MYSQL = "{version: MYSQL_8_4, tier: db-n1-standard-2%s}"
MADE = "{version: POSTGRES_17, tier: db-custom-2-8192%s}"


@pytest.mark.parametrize(
    ("databases", "path", "says"),
    [
        ([on(create=MADE % ", engine: x")], "create.engine", "there is no such field"),
        ([on(create="{version: ORACLE_19, tier: db-custom-2-8192}")], "create.version", "POSTGRES_17 or MYSQL_8_4"),
        ([on(create="{version: POSTGRES_17, tier: n2-standard-2}")], "create.tier", "db-custom-2-8192"),
        ([on(create=MADE, engine="mysql")], "", "POSTGRES_17 needs engine: postgresql"),
        ([on(create=MADE, ip="private")], "", "ip: private needs create.network"),
        ([on(create=MADE % ", network: default")], "create.network", "projects/PROJECT/global/networks/NAME"),
        ([on(create=MADE % ", flags: {max_connections: 5}")], "create.flags.max_connections", 'write "5" in quotes'),
        ([on(create=MADE % ", backups: {start_time: '25:00'}")], "create.backups.start_time", "a time of day in UTC"),
        ([on(create=MADE % ", replicas: [{name: r}, {name: r}]")], "create", "two have the same name"),
        ([on(create=MADE % ", replicas: [{name: orders}]")], "create.replicas[0].name", "another instance"),
        (
            [on(engine="mysql", create=ON_MYSQL % ", replicas: [{name: r}], backups: {point_in_time: false}")],
            "create",
            "set backups.point_in_time: true",
        ),
    ],
)  # fmt: skip
def test_an_instance_that_cannot_be_made_is_refused(databases, path, says):
    with pytest.raises(SpecError) as refusal:
        fleet(*(database.replace("%s", "") for database in databases))
    place = ".".join(filter(None, ("shards[0].database.cloud_sql", path)))
    (line,) = (line for line in str(refusal.value).splitlines() if f": {place}: " in line)
    assert says in line


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (on(database="b", create=MADE % ", disk_gb: 20"), "shard 's0' describes instance"),
        (on("my-project:europe-west4:orders", create=MADE % ""), "of another project or region that shard 's0' makes"),
        (on("my-project:europe-west1:b", create=MADE % ", replicas: [{name: orders}]"), "'orders' is the name"),
    ],
)  # fmt: skip
def test_instances_that_would_be_confused_are_refused(second, says):
    with pytest.raises(SpecError, match=rf"shards\[1\]\.database\.cloud_sql\.create\S*: .*{re.escape(says)}"):
        fleet(on(create=MADE % ""), second)


def test_shards_may_share_an_instance_that_is_made():
    made = fleet(on(), on(database="b"), top=f"cloud_sql: {{create: {MADE % ', replicas: [{name: r}]'}}}")
    assert len(made.shards) == 2


def test_the_api_makes_no_instance():
    with pytest.raises(SpecError, match=r"cloud_sql\.create: `provisioner: api` makes topics and subscriptions alone"):
        fleet(on(create=MADE % ""), top="provisioner: api")


def test_a_made_instance_has_the_flag_of_the_login():
    cloud_sql = fleet(on(create=MADE % ", flags: {max_connections: '50'}")).shards[0].database.cloud_sql
    assert cloudsql.flags(cloud_sql, cloud_sql.create) == {"max_connections": "50", "cloudsql.iam_authentication": "on"}


def test_a_kind_that_bodies_are_not_checked_for_is_refused():
    with pytest.raises(SpecError, match=r"database.cloud_sql.engine: mysql isn't among `databases`.* Fix: add mysql"):
        fleet(on(engine="mysql"), top="databases: [postgresql]")


def test_a_user_that_is_too_long_for_postgresql_is_refused():
    head = HEAD.replace("fleet: orders", f"fleet: {'f' * 24}").replace("my-project", "example.com:" + "p" * 30)
    with pytest.raises(
        SpecError, match=r"database\.cloud_sql: the database user .* has 74 characters, and PostgreSQL allows 63"
    ):
        fleet(on(), head=head)
    fleet(on(engine="mysql"), head=head)


def cloud_sql_advice(*databases, **more):
    return [line for line in advice(fleet(*databases, **more)) if line.startswith("cloud_sql")]


def test_advice_names_the_flag_and_the_users_to_make_and_whom_to_grant():
    with_password = (on(database=name, iam="false") for name in "cd")
    lines = cloud_sql_advice(on(), on(database="b", engine="mysql"), *with_password)
    to_make, to_grant, to_make_on_mysql, to_grant_on_mysql = lines
    assert "cloudsql.iam_authentication=on" in to_make
    assert "orders-s0@my-project.iam on orders:" in to_make
    assert "GRANTs them to orders-s0@my-project.iam on orders:" in to_grant
    assert "cloudsql_iam_authentication=on" in to_make_on_mysql
    assert "orders-s1@my-project.iam.gserviceaccount.com on orders:" in to_make_on_mysql
    assert "GRANTs them to orders-s1 on orders:" in to_grant_on_mysql


def test_advice_on_a_made_instance_is_what_is_left_to_do():
    made = on(create=MADE % ", replicas: [{name: r}]")
    to_grant, to_keep = cloud_sql_advice(made)
    assert "GRANTs" in to_grant
    assert "retain_acked" in to_keep
    assert len(cloud_sql_advice(made, top="subscription: {retain_acked: true}")) == 1
