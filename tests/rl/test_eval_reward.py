"""`temper eval-reward` from files to tables, JSON and pages."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from model.tiny import create_tiny

PAIRS = Path(__file__).resolve().parent.parent / "data" / "judgebench" / "pairs.jsonl"


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def judgebench() -> list[dict[str, Any]]:
    return [json.loads(line) for line in PAIRS.read_text().splitlines()]


def test_recorded_scores_reproduce_the_published_figure(eval_reward: Any, tmp_path: Path) -> None:
    rows = judgebench()
    values = [(2, 1), (1, 2), (1, 1), (1, 2), (3, 0), (0, 3), (1, 1), (2, 1), (5, 5)]
    scores = [
        {"id": row["pair_id"], "scores": {"A": a, "B": b}}
        for row, (a, b) in zip(rows, values, strict=True)
    ]
    path = write(tmp_path / "scores.jsonl", scores)
    code, out, _ = eval_reward(str(PAIRS), "--scores", path, "--json")
    found = json.loads(out)
    assert code == 0
    right = sum(
        ("A>B" if a > b else "B>A") == row["label"]
        for row, (a, b) in zip(rows, values, strict=True)
    )
    assert found["published"]["value"] == pytest.approx(right / 9)
    overall = found["overall"]
    strict = sum(
        (a > b) if row["label"] == "A>B" else (b > a)
        for row, (a, b) in zip(rows, values, strict=True)
    )
    assert (overall["right"], overall["ties"], overall["comparisons"]) == (strict, 3, 9)
    assert set(found["subsets"]) == {"Coding", "Knowledge", "Math", "Reasoning"}
    page = Path(tmp_path / found["files"]["page"]).read_text()
    assert page.startswith("<!doctype html>") and "Worst disagreements" in page


def test_best_of_eight_exactly(eval_reward: Any, tmp_path: Path) -> None:
    rows = [
        {
            "id": str(number),
            "prompt": f"p{number}",
            "responses": [f"{number} {place}" for place in range(8)],
            "correct": [(number * place) % 3 == 1 for place in range(8)],
            "scores": [float((place * 5 + number) % 8) for place in range(8)],
        }
        for number in range(40)
    ]
    code, out, _ = eval_reward(write(tmp_path / "b.jsonl", rows), "--json")
    found = json.loads(out)["best_of_n"]
    assert code == 0
    assert found["pass_at_1"]["value"] == pytest.approx(
        sum(sum(row["correct"]) / 8 for row in rows) / 40
    )
    best = [row["correct"][row["scores"].index(7.0)] for row in rows]
    assert found["rm_at_n"]["value"] == sum(best) / 40 == found["rm_at_n_first"]
    assert found["pass_at_n"]["value"] == sum(any(row["correct"]) for row in rows) / 40
    code, out, _ = eval_reward("pairs", str(tmp_path / "b.jsonl"))
    assert code == 0 and "RM@8" in out and "pass@8" in out and "report.html" in out


def test_every_kind_of_bad_row_is_shown(eval_reward: Any, tmp_path: Path) -> None:
    rows = judgebench()
    bad = [*rows, {**rows[0], "pair_id": "unlabelled", "label": None}, rows[1]]
    bad.append({**rows[2], "question": "another"})
    scores = [{"id": row["pair_id"], "scores": {"A": 1, "B": 0}} for row in rows[1:]]
    data, given = write(tmp_path / "d.jsonl", bad), write(tmp_path / "s.jsonl", scores)
    code, out, _ = eval_reward(data, "--scores", given)
    assert code == 0
    for text in (
        "1 x row without a label",
        "1 x row repeated",
        "1 x id of several different rows",
        "1 x responses all equal",
        "3 x row without recorded scores",
        "1 x scores of an id that no row has",
        "line 10 unlabelled: label None is neither",
        "rows are not judged and in no figure",
    ):
        assert text in " ".join(out.split()), text


def test_a_function_is_resumed_and_compared(eval_reward: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def long(prompt, response):\n    return len(response)\n"
        "def first(prompt, a, b):\n    return 'A'\n"
    )
    code, out, _ = eval_reward(str(PAIRS), "--judge", "mine.py:long", "--out", "one")
    assert code == 0 and "judge prefers longer 100.0 %" in " ".join(out.split())
    code, out, _ = eval_reward(str(PAIRS), "--judge", "mine.py:long", "--out", "one")
    assert "17 judgements were kept from an earlier run" in out  # 18 texts, two the same
    code, out, _ = eval_reward(str(PAIRS), "--judge", "mine.py:first", "--out", "two")
    shown = " ".join(out.split())
    assert "ALWAYS SAYS A" in shown
    assert "same verdict in both orders 0/9" in shown
    assert "accuracy, first order only 44.44 %" in shown
    code, out, _ = eval_reward("compare", "one", "two/result.json", "--json")
    found = json.loads(out)
    assert code == 0 and found["rows"] == 9 and found["same_data"]
    assert found["second_accuracy"]["value"] == 0.5


def test_an_endpoint_that_fails_for_some_is_told_and_asked_again(
    eval_reward: Any, tmp_path: Path
) -> None:
    broken = True
    asked = 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal asked
            asked += 1
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            refused = (
                broken
                and judgebench()[0]["question"][:40] in json.loads(body)["messages"][1]["content"]
            )
            text = "I refuse." if refused else '{"better": "B"}'
            reply = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    command = (
        *(str(PAIRS), "--judge", f"http://127.0.0.1:{server.server_port}/v1"),
        *("model=m", "concurrency=4", "--out", "o", "--json"),
    )
    try:
        code, out, _ = eval_reward(*command)
        found = json.loads(out)
        assert code == 0 and found["judged"] < 9
        (nonsense,) = [each for each in found["problems"] if each["kind"] == "nonsense"]
        assert nonsense["count"] >= 2 and "I refuse." in nonsense["examples"][0]["why"]
        broken, before = False, asked
        code, out, _ = eval_reward(*command)
    finally:
        server.shutdown()
        server.server_close()
    assert json.loads(out)["judged"] == 9
    assert asked - before == nonsense["count"]


def test_what_an_endpoint_refuses_is_told_however_much_it_is(
    eval_reward: Any, tmp_path: Path
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, reply = 400, b"This model's maximum context length is 8192 tokens."
            if "long" not in json.loads(body)["messages"][1]["content"]:
                choice = {"message": {"content": '{"better": "A"}'}}
                status, reply = 200, json.dumps({"choices": [choice]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *arguments: object) -> None:
            pass

    rows = [{"prompt": f"long {n}", "chosen": "x", "rejected": "y"} for n in range(15)]
    rows.append({"prompt": "short", "chosen": "x", "rejected": "y"})
    data = write(tmp_path / "d.jsonl", rows)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        for _ in range(2):  # the second time only those that are refused are asked about
            code, out, _ = eval_reward(
                data, "--judge", url, "model=m", "concurrency=4", "--out", "o", "--json"
            )
            found = json.loads(out)
            assert code == 0 and found["judged"] == 1
            assert [(each["kind"], each["count"]) for each in found["problems"]] == [
                ("refused", 30)
            ]
    finally:
        server.shutdown()
        server.server_close()


def test_judges_of_one_name_have_folders_of_their_own(eval_reward: Any, tmp_path: Path) -> None:
    folders = []
    for name, worth in (("one", "len(response)"), ("two", "-len(response)"), ("one", "0")):
        (tmp_path / name).mkdir(exist_ok=True)
        path = tmp_path / name / "mine.py"
        if not path.exists():
            path.write_text(f"def score(prompt, response):\n    return {worth}\n")
        code, out, _ = eval_reward(str(PAIRS), "--judge", f"{name}/mine.py:score", "--json")
        assert code == 0
        folders.append(Path(json.loads(out)["files"]["result"]).parent)
    one, two, again = folders
    assert one != two and again == one
    made = sorted(each.name for each in (tmp_path / "runs" / "eval-reward").iterdir())
    assert made == sorted([one.name, two.name])
    assert all(re.fullmatch(r"pairs\.jsonl__mine\.py-score-[0-9a-f]{6}", each) for each in made)


def test_a_judge_that_ties_in_one_order_has_ties(eval_reward: Any, tmp_path: Path) -> None:
    rows = judgebench()
    right = [row["response_A" if row["label"] == "A>B" else "response_B"] for row in rows]
    differ = sum(row["response_A"] != row["response_B"] for row in rows)
    (tmp_path / "mine.py").write_text(
        f"RIGHT = {right!r}\n"
        "def timid(prompt, a, b):\n    return 'A' if a in RIGHT and a != b else 'tie'\n"
    )
    code, out, _ = eval_reward(str(PAIRS), "--judge", "mine.py:timid", "--json")
    found = json.loads(out)
    assert code == 0 and found["overall"]["accuracy"]["value"] == 0.5
    assert found["overall"]["ties"] == 9
    assert found["orders"]["consistent"]["count"] == 9 - differ
    assert found["published"]["value"] == pytest.approx(differ / 9)  # a verdict beside a tie


def test_a_reward_model_on_preferences(eval_reward: Any, tmp_path: Path) -> None:
    create_tiny(tmp_path / "tiny", ["good answer, bad answer"] * 20, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=1,
        max_position_embeddings=64,
    )
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    rows = [
        {"id": n, "prompt": f"p{n}", "chosen": "good " * n, "rejected": "bad"} for n in range(1, 31)
    ]
    data = write(tmp_path / "d.jsonl", rows)
    code, out, _ = eval_reward(data, "--judge", "reward", "--json")
    found = json.loads(out)
    assert code == 0 and found["judged"] == 30
    assert found["truncated"] > 0 and any("TRUNCATED" in each for each in found["warnings"])
    code, _, error = eval_reward(data, "--judge", "tiny")
    assert code == 2 and "a language model, not a reward model" in error


def test_a_verifier_on_best_of_n(eval_reward: Any, tmp_path: Path) -> None:
    rows = [
        {
            "id": "1",
            "prompt": "2 + 2?",
            "responses": [r"\boxed{5}", r"\boxed{4}"],
            "correct": [0, 1],
            "reference": "4",
        },
        {"id": "2", "prompt": "3 + 3?", "responses": ["six", "7"], "correct": [1, 0]},
    ]
    data = write(tmp_path / "d.jsonl", rows)
    code, out, _ = eval_reward(data, "--judge", "verifier:math", "--json")
    found = json.loads(out)
    assert code == 0 and found["best_of_n"]["rm_at_n"]["value"] == 1.0
    assert found["judged"] == 1
    assert any(each["kind"] == "failed" and each["count"] == 2 for each in found["problems"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.jsonl", "--scores", "s"), "cannot read nowhere.jsonl"),
        ((str(PAIRS),), "give --scores FILE or --judge JUDGE"),
        ((str(PAIRS), "--scores", "nowhere"), "cannot read nowhere"),
        ((str(PAIRS), "--scores", "s", "--judge", "j"), "not both"),
        ((str(PAIRS), "--judge", "oracle"), "neither a folder"),
        ((str(PAIRS), "--judge", "verifier:poetry"), "known are math"),
        ((str(PAIRS), "--judge", "http://x", "modle=m"), "did you mean 'model'"),
        (
            (str(PAIRS), "--judge", "http://x", "asks=all"),
            "asks must be comparison, score or critic",
        ),
        ((str(PAIRS), "--judge", "http://x", "timeout_s=soon"), "timeout_s must be float"),
        ((str(PAIRS), "--judge", "http://x"), "name of its model: model=NAME"),
        (("compare", "a.json", "b.json"), "cannot read a.json"),
    ],
)
def test_bad_input_is_one_message(
    eval_reward: Any, arguments: tuple[str, ...], message: str
) -> None:
    code, _, error = eval_reward(*arguments)
    assert code == 2
    assert message in error and "Traceback" not in error


def test_a_foreign_folder_is_left_alone(eval_reward: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    (tmp_path / "mine.py").write_text("def score(prompt, response):\n    return 1\n")
    code, _, error = eval_reward(str(PAIRS), "--judge", "mine.py:score", "--out", "mine")
    assert code == 2 and "holds other files" in error
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("below", ["a file", "/proc"])
def test_a_folder_that_cannot_be_made_is_told_before_judging(
    eval_reward: Any, tmp_path: Path, below: str
) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "mine.py").write_text(
        "def score(prompt, response):\n    open('judged', 'w')\n    return 1\n"
    )
    code, _, error = eval_reward(str(PAIRS), "--judge", "mine.py:score", "--out", f"{below}/x")
    assert code == 2 and f"cannot use --out {below}/x: " in error and "Traceback" not in error
    assert not (tmp_path / "judged").exists()


def test_results_that_cannot_be_written_are_told(eval_reward: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompt, response):\n    return len(response)\n")
    (tmp_path / "o" / "result.json").mkdir(parents=True)
    command = (str(PAIRS), "--judge", "mine.py:score", "--out", "o")
    code, _, error = eval_reward(*command)
    assert code == 1 and "cannot write o: Is a directory" in error and "again" in error
    (tmp_path / "o" / "result.json").rmdir()
    code, out, _ = eval_reward(*command)
    assert code == 0 and "judgements were kept" in out

    (tmp_path / "p" / "judgements.jsonl").mkdir(parents=True)
    code, _, error = eval_reward(str(PAIRS), "--judge", "mine.py:score", "--out", "p")
    assert code == 2 and "cannot use --out p: Is a directory" in error


def test_hostile_texts_reach_neither_terminal_nor_page(eval_reward: Any, tmp_path: Path) -> None:
    hostile = "\x1b[2J[bold]<script>\ud800"
    rows = [
        {"id": f"{n}{hostile}", "prompt": hostile, "chosen": hostile + "a", "rejected": hostile}
        | {"subset": f"{n % 2}{hostile}", "scores": [0, 1]}
        for n in range(4)
    ]
    rows.append({"id": hostile, "prompt": hostile, "chosen": hostile, "rejected": None})
    code, out, _ = eval_reward(write(tmp_path / "d.jsonl", rows), "--out", "o")
    assert code == 0 and "\x1b[2J" not in out and "[bold]<script>" in out
    assert "<script" not in (tmp_path / "o" / "report.html").read_text()
