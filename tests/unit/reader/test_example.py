"""The example of docs/reading.md runs."""

from examples import reading


def test_it_reads_by_key_and_over_all_shards(capsys):
    reading.main()
    assert capsys.readouterr().out.splitlines() == [
        "o-7 has the amount 70",
        "amount of o-7: 70",
        "largest: o-19, o-18, o-17",
    ]
