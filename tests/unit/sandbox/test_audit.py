"""The audit: every record is written, bounded, and holds no secret."""

import json

import pytest
from retinue_sandbox.audit import FIELDS, ITEMS_MAX, TEXT_LENGTH_MAX, Audit
from retinue_sandbox.metrics import audit_failures
from retinue_sandbox.redacting import redacted
from structlog.testing import capture_logs


class Clock:
    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def audit(tmp_path, clock):
    made = Audit(str(tmp_path / "audit"), clock)
    yield made
    made.close()


def lines(tmp_path):
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "audit").iterdir())
    }


def test_a_record_is_a_line_of_its_days_file(audit, clock, tmp_path):
    audit.record("execution", tenant_id="ten_a", outcome="exited", exit_code=0)
    clock.time += 86_400
    audit.record("file_write", tenant_id="ten_a", path="a.txt")
    found = lines(tmp_path)
    assert list(found) == ["sandbox-20231114.jsonl", "sandbox-20231115.jsonl"]
    (first,) = found["sandbox-20231114.jsonl"]
    assert first == {
        "time": "2023-11-14T22:13:20.000+00:00",
        "kind": "execution",
        "tenant_id": "ten_a",
        "outcome": "exited",
        "exit_code": 0,
        "trace_id": "",
    }
    assert [name for name in FIELDS if name in first] == list(first), "fields keep their order"
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "audit").iterdir())


def test_values_are_bounded(audit, tmp_path):
    audit.record("file_write", path="x" * 10_000, argv=["y" * 10_000] * 1000)
    ((record,),) = lines(tmp_path).values()
    assert len(record["path"]) == TEXT_LENGTH_MAX
    assert len(record["argv"]) == ITEMS_MAX
    assert {len(word) for word in record["argv"]} == {TEXT_LENGTH_MAX}


def test_a_fact_that_no_record_holds_is_refused(audit):
    with pytest.raises(TypeError, match="output"):
        audit.record("execution", output="what was said")


def test_what_cannot_be_written_to_its_file_is_logged_and_counted(audit, tmp_path):
    (tmp_path / "audit").rmdir()
    before = audit_failures._value.get()
    with capture_logs() as logs:
        audit.record("execution", tenant_id="ten_a", outcome="exited")
    assert audit_failures._value.get() == before + 1
    (record,) = [line for line in logs if line["event"] == "audit"]
    assert (record["audit_tenant_id"], record["audit_outcome"]) == ("ten_a", "exited")


def test_without_a_folder_records_are_lines_of_the_log(clock):
    with capture_logs() as logs:
        Audit("", clock).record("execution", tenant_id="ten_a")
    assert [line["audit_kind"] for line in logs] == ["execution"]


@pytest.mark.parametrize(
    "argv",
    [
        ["curl", "-H", "Authorization: Bearer hidden", "https://example.com"],
        ["curl", "https://me:hidden@example.com/"],
        ["tool", "--token", "hidden"],
        ["tool", "--api-key=hidden"],
        ["sh", "-c", "PASSWORD=hidden tool"],
        ["sh", "-c", 'curl -d \'{"client_secret": "hidden"}\''],
        ["sh", "-c", "x" * 120 + " token=hidden"],
        ["sh", "-c", "export PGPASSWORD=hidden; psql"],
        ["sh", "-c", 'DB_PASSWORD="two hidden words" tool'],
        ["sh", "-c", "DB_PASSWORD='two hidden words' tool"],
        ["sh", "-c", "PASSWORD=two\\ hidden\\ words tool"],
        ["sh", "-c", 'SECRET="not closed, hidden'],
        ["sh", "-c", "tool --password hidden --verbose"],
        ["sh", "-c", "tool --db-password 'two hidden words'"],
        ["sh", "-c", "curl -u me:hidden https://example.com"],
        ["sh", "-c", "curl --user 'me:hidden words' https://example.com"],
        ["curl", "-u", "me:hidden", "https://example.com"],
        ["sh", "-c", "mysql -u root -phidden base"],
        ["sh", "-c", "sshpass -p hidden ssh example.com"],
        ["sh", "-c", "curl -H 'X-Api-Key: hidden' -H \"Authorization: token hidden\" https://example.com"],
        ["sh", "-c", "echo ghp_hiddenhiddenhidden1 | gh auth login"],
        ["python3", "-c", "client(api_key='hidden words')"],
        ["sh", "-c", "echo eyJhbGciOiJIUzI1hidden.eyJzdWIiOiJoaWRkZW4ihidden.hidden > file"],
    ],
)
def test_a_shortened_command_holds_no_secret(argv):
    assert "hidden" not in " ".join(redacted(argv))
    assert redacted(argv)[0] == argv[0]


def test_a_command_without_secrets_is_shortened_and_else_left_alone():
    assert redacted(["git", "commit", "-m", "tokens are counted"]) == ["git", "commit", "-m", "tokens are counted"]
    for text in (
        "cd src && python3 -m pytest -x",
        "grep -rn password src",
        "tar -xzpf a.tar.gz",
        "ls | sort -u",
    ):
        assert redacted(["sh", "-c", text]) == ["sh", "-c", text]
    assert redacted(["sh", "-c", "TOKEN=x make && make install"])[2] == "TOKEN=*** make && make install"
    assert len(redacted(["x"] * 100)) == 16
    assert len(redacted(["x" * 1000])[0]) == 128
