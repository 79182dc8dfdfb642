"""Orders that a Django application writes and publishes in one transaction. `shardctl relay` publishes what this leaves.

SHARDCTL_OUTBOX_DATABASE_URL=postgresql://… python -m examples.outbox_django
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import django
from django.conf import settings
from django.db import connection, models, transaction
from sqlalchemy import URL, create_engine, make_url

from examples.outbox import FILE
from shardctl import Outbox, Write, load_fleet

BACKENDS = {"sqlite": "sqlite3", "postgresql": "postgresql"}


def main() -> None:
    url = make_url(os.environ["SHARDCTL_OUTBOX_DATABASE_URL"])
    settings.configure(DATABASES={"default": database(url)})
    django.setup()
    with TemporaryDirectory() as folder:
        (file := Path(folder) / "shards.yaml").write_text(FILE)
        outbox = Outbox(load_fleet(file))
    outbox.create(create_engine(url))

    class Cart(models.Model):  # type: ignore[misc]  # Django has no types
        """A table of the application's own."""

        cart_id = models.TextField(primary_key=True)
        status = models.TextField()

        class Meta:
            app_label = "shop"

        def __str__(self) -> str:
            return f"{self.cart_id}: {self.status}"

    with connection.schema_editor() as schema:
        schema.create_model(Cart)

    with transaction.atomic():
        Cart.objects.create(cart_id="c-1", status="bought")
        enqueue(outbox, Write("order", {"order_id": "o-1", "status": "paid"}))
    with transaction.atomic():
        Cart.objects.create(cart_id="c-2", status="bought")
        enqueue(outbox, Write("order", {"order_id": "o-2", "status": "paid"}))
        transaction.set_rollback(True)  # neither the cart nor the order
    print("carts:", Cart.objects.count())


def enqueue(outbox: Outbox, write: Write) -> None:
    """Store the write in the transaction that is open."""
    with connection.cursor() as cursor:
        cursor.execute(*outbox.statement(write))


def database(url: URL) -> dict[str, Any]:
    """The URL as Django's settings have it."""
    return {
        "ENGINE": f"django.db.backends.{BACKENDS[url.get_backend_name()]}",
        "NAME": url.database,
        "USER": url.username,
        "PASSWORD": url.password,
        "HOST": url.host,
        "PORT": url.port,
    }


if __name__ == "__main__":
    main()
