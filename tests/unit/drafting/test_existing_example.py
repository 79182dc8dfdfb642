"""The example of docs/existing-tables.md runs."""

from examples import existing


def test_it_drafts_adopts_and_refuses_what_the_tables_cannot_hold(capsys, monkeypatch):
    monkeypatch.setenv("SHARDCTL_DATABASE_URL_S0", "")  # what the example sets is undone
    existing.main()
    lines = capsys.readouterr().out.splitlines()
    assert '      total: "numeric(10,2)"' in lines
    assert "Ada's invoice has slot 100" in lines
    assert '"scan":"AP8="' in lines[-4]
    assert [line.partition(" must")[0] for line in lines[-3:]] == [
        "refused: 'due'",
        "refused: 'total'",
        "refused: 'customer'",
    ]
