"""Does `flow-dpo judge` survive an address that fails, hangs or talks nonsense, go on where it was, and mix nothing?"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flow_dpo.cli import main
from flow_dpo.cli.judge import judge, parse_judge
from flow_dpo.core.errors import ConfigError, DataError, EngineError
from flow_dpo.evaluate.judge.backends import EndpointJudge
from flow_dpo.evaluate.judge.protocol import JudgePrompts, JudgeQuestion, JudgeReply, JudgeSettings, pairs_of, questions
from flow_dpo.models.chat_client import ChatEndpoint, EndpointSettings
from flow_dpo.runs.files import read_jsonl
from flow_dpo.traces.trace import read_traces
from tests.support.chat_models import chat_model_folder
from tests.support.judge_server import folder, good_and_bad, place_of, serving, trace

KEY = "sk-topsecret"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def perfect(text: str, number: int) -> str:
    return f"Verdict: {place_of(text, 'good')}"


def words(path: Path, url: str, *more: str) -> list[str]:
    return [
        "--traces_a", str(path / "a"), "--traces_b", str(path / "b"), "--output_dir", str(path / "out"),
        "--base_url", url, "--backoff_s", "0.01", *more,
    ]  # fmt: skip


def summary(path: Path) -> dict[str, Any]:
    return json.loads((path / "out" / "summary.json").read_text())


def test_an_address_judges_and_is_not_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    good_and_bad(tmp_path)
    with serving(perfect) as address:
        assert judge(words(tmp_path, address.url, "--body", '{"reasoning_effort": "low", "max_tokens": null}')) == 0
        found = summary(tmp_path)
        assert found["pairs"] == {"a": 4, "b": 0, "tie": 0, "unparsed": 0}
        assert found["judge"] == f"tiny at {address.url}"
        assert (found["a"]["source"], found["tokens"]) == ("a", 8 * 7)
        asked = address.requests[0]
        assert (asked["model"], asked["temperature"], asked["reasoning_effort"]) == ("tiny", 0, "low")
        assert "max_tokens" not in asked
        assert set(address.keys) == {f"Bearer {KEY}"}
        assert judge(words(tmp_path, address.url, "--body", '{"reasoning_effort": "low", "max_tokens": null}')) == 0
        assert len(address.requests) == 8
    for path in (tmp_path / "out").iterdir():
        assert KEY not in path.read_text()


@pytest.mark.parametrize("failing", [(500, b"oops"), (429, b"slow down"), (503, b"\xff\xfe")])
def test_what_may_pass_is_tried_again(tmp_path: Path, failing: tuple[int, bytes]) -> None:
    good_and_bad(tmp_path, 2)
    with serving(lambda text, number: failing if number % 2 == 0 else perfect(text, number)) as address:
        assert judge(words(tmp_path, address.url, "--concurrency", "1")) == 0
        assert len(address.requests) == 8
    assert summary(tmp_path)["pairs"]["a"] == 2


def test_an_address_that_goes_on_failing_loses_nothing(tmp_path: Path) -> None:
    good_and_bad(tmp_path)
    broken = [True]

    def answer(text: str, number: int) -> Any:
        return (500, b"oops") if broken[0] and number >= 3 else perfect(text, number)

    with serving(answer) as address:
        with pytest.raises(EngineError, match=r"found the status 500: 'oops' after 3 tries.*are kept"):
            judge(words(tmp_path, address.url, "--concurrency", "1", "--retries", "2"))
        assert len(read_jsonl(tmp_path / "out" / "judgements.jsonl")) == 3
        asked = len(address.requests)
        assert asked in (6, 7), "three, then three tries; the next question may be on its way when the last one fails"
        broken[0] = False
        assert judge(words(tmp_path, address.url)) == 0
        assert len(address.requests) in (asked + 5, asked + 6), "five are left; one of before may have come late"
    assert summary(tmp_path)["pairs"]["a"] == 4


def test_a_request_that_hangs_ends_at_its_deadline(tmp_path: Path) -> None:
    good_and_bad(tmp_path, 2)
    started = time.monotonic()
    with serving(lambda text, number: None if number == 0 else perfect(text, number)) as address:
        assert judge(words(tmp_path, address.url, "--deadline_s", "0.5", "--concurrency", "2")) == 0
        assert len(address.requests) == 5
        with pytest.raises(EngineError, match=r"found no complete answer within 0\.3 s after 1 tries"):
            hanging(address.url)
    assert summary(tmp_path)["pairs"]["a"] == 2
    assert time.monotonic() - started < 15


def hanging(url: str) -> None:
    """An address whose bytes come one by one for ever: no single wait is long."""
    server = socket.create_server(("127.0.0.1", 0))
    settings = EndpointSettings(
        base_url=f"http://127.0.0.1:{server.getsockname()[1]}/v1", served_model="x", deadline_s=0.3, retries=0
    )

    def drip() -> None:
        one, _ = server.accept()
        with one:
            one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            try:
                for _ in range(200):
                    one.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        ChatEndpoint(settings, api_key="").ask([], max_tokens=1)
    finally:
        thread.join()
        server.close()


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"[" * 100_000,
     b'{"choices": [{"message": {"content": 7}}]}', b"\xff\x00", b"9" * 10_000],
)  # fmt: skip
def test_nonsense_is_named_and_not_tried_again(body: bytes) -> None:
    with serving(lambda text, number: (200, body)) as address:
        endpoint = ChatEndpoint(EndpointSettings(base_url=address.url, served_model="x"), api_key="")
        with pytest.raises(EngineError, match="expected a chat completion in JSON"):
            endpoint.ask([{"role": "user", "content": "?"}], max_tokens=1)
        assert len(address.requests) == 1


def test_answers_that_are_no_verdicts_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One request is refused, one has no content, one is cut off, one is hostile."""
    good_and_bad(tmp_path)
    special = {
        0: (400, b"too long for me"),
        1: (200, b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'),
        2: (200, b'{"choices": [{"message": {"content": "Verdict: A"}, "finish_reason": "length"}], "usage": 5}'),
        3: "\x1b]0;x\x07 \ud800 Verdict: A; rm -rf /",
    }
    with serving(lambda text, number: special.get(number) or perfect(text, number)) as address:
        assert judge(words(tmp_path, address.url, "--concurrency", "1")) == 0
    found = summary(tmp_path)
    assert found["pairs"] == {"a": 2, "b": 0, "tie": 0, "unparsed": 2}
    assert found["unparsed"] == {"cut off": 1, "no verdict": 2, "refused": 1}
    rows = read_jsonl(tmp_path / "out" / "judgements.jsonl")
    assert rows[0]["words"] == "too long for me"
    assert "2 of 4 pairs have no verdict in both orders (cut off: 1, no verdict: 2, refused: 1)" in caplog.text
    assert rows[3]["words"] == "\x1b]0;x\x07 \ufffd Verdict: A; rm -rf /"


def test_a_judge_that_answers_neither_is_an_error_with_its_words_kept(tmp_path: Path) -> None:
    good_and_bad(tmp_path, 2)
    with serving(lambda text, number: "Both are fine.") as address:
        for _ in range(2):  # asked again it says the same, and nobody is asked
            with pytest.raises(
                EngineError, match=r"2 of 2 pairs have no verdict.*no verdict: 4.*--verdict_format choices"
            ):
                judge(words(tmp_path, address.url))
        assert len(address.requests) == 4
    assert summary(tmp_path)["win_rate"]["rate"] is None
    assert {r["words"] for r in read_jsonl(tmp_path / "out" / "judgements.jsonl")} == {"Both are fine."}


def test_an_address_that_does_not_answer_is_refused_at_the_start(tmp_path: Path) -> None:
    good_and_bad(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match="start the server there, or give another --base_url"):
        judge(words(tmp_path, f"http://127.0.0.1:{port}/v1"))
    assert not (tmp_path / "out").exists()  # so that another address may be given
    with serving(perfect) as address:
        address.models = ["x", "y"]
        with pytest.raises(ConfigError, match="--served_model, such as x, y"):
            judge(words(tmp_path, address.url))


def test_a_wrong_key_or_model_is_an_error_that_does_not_show_the_key() -> None:
    with serving(lambda text, number: (401, f"no such key {KEY}".encode())) as address:
        endpoint = ChatEndpoint(EndpointSettings(base_url=address.url, served_model="x"), api_key=f"{KEY}\n")
        with pytest.raises(EngineError, match=r"status 401: 'no such key \[key\]'"):
            endpoint.ask([{"role": "user", "content": "?"}], max_tokens=1)
    with pytest.raises(ConfigError, match="printable") as caught:
        ChatEndpoint(EndpointSettings(base_url="http://x"), api_key=f"{KEY}\nX: y")
    assert KEY not in str(caught.value)


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    good_and_bad(tmp_path)
    with serving(perfect) as address:
        judge(words(tmp_path, address.url))
        before = (tmp_path / "out" / "judgements.jsonl").read_bytes()
        for more, named in [
            (["--prompts.system", "x"], "prompts.system"), (["--max_pairs", "2"], "judge.max_pairs"),
            (["--served_model", "z"], "endpoint.served_model"), (["--traces_b", str(tmp_path / "a")], "traces_b"),
        ]:  # fmt: skip
            with pytest.raises(ConfigError, match=rf"other settings \({named} was"):
                judge(words(tmp_path, address.url, *more))
        assert judge(words(tmp_path, address.url, "--concurrency", "2", "--deadline_s", "9")) == 0
        assert len(address.requests) == 8
    assert (tmp_path / "out" / "judgements.jsonl").read_bytes() == before
    (tmp_path / "out" / "judge.json").write_text("[]")
    with pytest.raises(DataError, match=r"judge\.json"):
        judge(words(tmp_path, "http://127.0.0.1:1/v1"))


def test_more_pairs_are_added_to_what_was_judged(tmp_path: Path) -> None:
    good_and_bad(tmp_path)
    with serving(perfect) as address:
        judge(words(tmp_path, address.url, "--max_pairs", "2"))
        assert (summary(tmp_path)["num_pairs"], len(address.requests)) == (2, 4)
        judge(words(tmp_path, address.url, "--max_pairs", "3"))
        assert (summary(tmp_path)["num_pairs"], len(address.requests)) == (3, 6)
        with pytest.raises(ConfigError, match=r"judge.max_pairs was 3, is 2"):
            judge(words(tmp_path, address.url, "--max_pairs", "2"))
        judge(words(tmp_path, address.url))
        assert (summary(tmp_path)["num_pairs"], len(address.requests)) == (4, 8)


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """Five answers come, the sixth question hangs, and then the process is ended."""
    good_and_bad(tmp_path)
    hangs = [True]
    with serving(lambda text, number: None if hangs[0] and number == 5 else perfect(text, number)) as address:
        line = words(tmp_path, address.url, "--concurrency", "1")
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
        child = subprocess.Popen([sys.executable, "-m", "flow_dpo", "judge", *line], env=env)
        kept = tmp_path / "out" / "judgements.jsonl"
        for _ in range(1200):  # the sixth question may be asked before the fifth answer is written
            whole = kept.is_file() and kept.read_bytes().count(b"\n") == 5
            if (whole and len(address.requests) == 6) or child.poll() is not None:
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        assert child.wait(15) == -signal.SIGKILL
        assert len(read_jsonl(kept)) == 5
        hangs[0] = False
        assert judge(line) == 0
        assert len(address.requests) == 6 + 3
    assert summary(tmp_path)["pairs"]["a"] == 4


def test_an_interruption_waits_for_nobody(tmp_path: Path) -> None:
    """The second question hangs for 20 s, the others are answered; Ctrl-C comes with the first answer."""
    good_and_bad(tmp_path)
    pairs = pairs_of(read_traces(tmp_path / "a"), read_traces(tmp_path / "b"), JudgeSettings())
    heard: list[tuple[str, str, str]] = []

    def keep(asked: JudgeQuestion, said: JudgeReply) -> None:
        heard.append(asked.key)
        if len(heard) == 1:
            raise KeyboardInterrupt

    with serving(lambda text, number: None if number == 1 else perfect(text, number)) as address:
        endpoint = ChatEndpoint(EndpointSettings(base_url=address.url, served_model="x"), api_key="")
        who = EndpointJudge(endpoint, prompts=JudgePrompts(), settings=JudgeSettings(), concurrency=2)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            who.ask_all(questions(pairs), keep)
        assert time.monotonic() - started < 10
        assert len(set(heard)) == len(heard) < 8


@pytest.mark.parametrize("said", ["text", "choices"])
def test_a_model_in_this_process_judges(tmp_path: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A random model keeps to no form, but it has odds between two words; a model with a system-less template."""
    good_and_bad(tmp_path, 3)
    model = chat_model_folder("llama", tmp_path / "model")
    line = [
        "judge", "--traces_a", str(tmp_path / "a"), "--traces_b", str(tmp_path / "b"), "--verdict_format", said,
        "--output_dir", str(tmp_path / "out"), "--model_name_or_path", str(model), "--max_tokens", "6",
        "--prompts.user", "{question}{a}{b}", "--prompts.ask_text", "A or B?", "--prompts.system", "Judge.",
    ]  # fmt: skip
    assert main.main(line) == (1 if said == "text" else 0)
    shown = capsys.readouterr()
    rows = read_jsonl(tmp_path / "out" / "judgements.jsonl")
    assert len(rows) == 6
    if said == "text":
        assert "3 of 3 pairs have no verdict" in shown.err
    else:
        assert all(r["log_odds"] is not None and r["words"] in ("A", "B", "tie") for r in rows)
        assert "win rate" in shown.out


def test_traces_may_hold_anything(tmp_path: Path) -> None:
    folder(tmp_path / "a", [trace("p\u202e", "good \u202e [bold] {b}")])
    folder(tmp_path / "b", [trace("p\u202e", "bad\x00</s>")])
    with serving(perfect) as address:
        assert judge(words(tmp_path, address.url)) == 0
        assert judge(words(tmp_path, address.url)) == 0
        assert len(address.requests) == 2
    assert summary(tmp_path)["pairs"]["a"] == 1


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    sides = ["--traces_a", "x", "--traces_b", "y"]
    for line, message in [
        ([], "no --traces_a"),
        (sides, "expected a judge, found none"),
        ([*sides, "--served_model", "x"], "expected --base_url"),
        ([*sides, "--base_url", "http://x", "--model_name_or_path", "y"], "expected one judge"),
        ([*sides, "--base_url", "http://x", "--verdict_format", "choices"], "needs a model in this process"),
        ([*sides, "--base_url", "ftp://x"], "such as http"),
        ([*sides, "--base_url", "http://x:99999"], "such as http"),
        ([*sides, "--base_url", "http://me:pw@x/v1"], "without a name or password"),
        ([*sides, "--base_url", "http://x", "--deadline_s", "0"], "deadline_s above 0"),
        ([*sides, "--max_pairs", "-1"], "max_pairs of 0"),
        ([*sides, "--max_tokens", "0"], "max_tokens of 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse_judge(line)
    with pytest.raises(DataError, match="flow-dpo generate"):
        judge([*sides, "--base_url", "http://x", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
