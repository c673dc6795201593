"""A finished script that runs again does no work; two processes with one folder do it once."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from flaky_server import FlakyServer, Reply
from user_scripts import Script, files_of

FINISHED = """
    import json, sys
    from datadreamer_like import DataDreamer, concat
    from datadreamer_like.models import HFTransformers, OpenAI
    from datadreamer_like.steps import CSVDataSource, DataFromPrompt, DataSource, FilterWithPrompt, Prompt

    folder, url, model, result = sys.argv[1:]
    with DataDreamer(folder):
        llm = OpenAI("m", base_url=url)
        real = CSVDataSource("Real", data_files="real.csv")
        writing = {"llm": llm, "instruction": "Write.", "n": 20}
        made = DataFromPrompt("Made", args=writing, outputs={"generations": "text"})
        judging = {"llm": llm, "instruction": "Good?"}
        kept = FilterWithPrompt("Kept", inputs={"inputs": made.output["text"]}, args=judging)
        data = concat(real, kept.select_columns("text")).shuffle(seed=1).map(lambda row: {"text": row["text"] + "."})
        parts = data.save(name="Data").splits(train_size=0.8, validation_size=0.2)
        small = HFTransformers(model, device="cpu")
        said = Prompt(
            "Said", inputs={"prompts": parts["validation"].output["text"]}, args={"llm": small, "max_new_tokens": 4}
        )
        json.dump([list(said.output), list(parts["train"].output)], open(result, "w"))
    print(*sorted({"torch", "transformers", "openai"} & set(sys.modules)))
"""


def test_a_finished_script_sends_nothing_changes_no_file_and_loads_no_model(
    tmp_path: Path, tiny_causal_lm: Path
) -> None:
    (tmp_path / "real.csv").write_text("text\n" + "\n".join(f"row {i}" for i in range(20)) + "\n")
    folder, result = tmp_path / "session", tmp_path / "result.json"
    with FlakyServer(lambda body, before: Reply("Yes.")) as server:
        arguments = [str(folder), server.url, str(tiny_causal_lm), str(result)]
        Script(FINISHED, tmp_path / "script.py", arguments, warm=True).run()
        files, rows, sent = files_of(folder), json.loads(result.read_text()), server.seen.total()
        assert sent == 21
        assert len(rows[0]) == 8  # the model's answers
        again = Script(FINISHED, tmp_path / "script.py", arguments).run()
        assert server.seen.total() == sent
    assert again.stdout.split() == []
    assert again.stderr.count("found finished") == len(list(folder.glob("*/node.json")))
    assert files_of(folder) == files
    assert json.loads(result.read_text()) == rows


TWICE = """
    import json, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataSource, Prompt

    folder, url, result = sys.argv[1:]
    with DataDreamer(folder):
        asked = DataSource("Questions", data={"prompts": [f"question {i}" for i in range(60)]})
        llm = OpenAI("m", base_url=url)
        answers = Prompt("Answers", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm, "concurrency": 4})
        json.dump(list(answers.output), open(result, "w"))
"""


def test_of_two_processes_on_one_folder_the_second_waits_and_finds_what_the_first_paid_for(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: Reply("fine", seconds=0.01)) as server:
        results = [tmp_path / f"{name}.json" for name in ("first", "second")]
        first, second = (
            Script(TWICE, tmp_path / f"{result.stem}.py", [str(tmp_path / "session"), server.url, str(result)])
            for result in results
        )
        one = first.start()
        while not server.seen:
            assert one.poll() is None
        one.send_signal(signal.SIGSTOP)  # it holds the step, for as long as the other one needs to come there
        try:
            two = second.start()
            assert two.stderr is not None
            said = next((line for line in two.stderr if "another process" in line), "nothing of the kind")
        finally:
            one.send_signal(signal.SIGCONT)
        assert said.startswith('"Answers": another process is working on it; waiting')
        for process in (one, two):
            _, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
        assert len(server.seen) == 60
        assert set(server.seen.values()) == {1}
    assert results[0].read_text() == results[1].read_text()


def test_two_processes_that_start_together_both_end_well(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: Reply("fine", seconds=0.002)) as server:
        results = [tmp_path / f"{name}.json" for name in ("first", "second")]
        processes = [
            Script(TWICE, tmp_path / f"{result.stem}.py", [str(tmp_path / "session"), server.url, str(result)]).start()
            for result in results
        ]
        for process in processes:
            _, log = process.communicate(timeout=60)
            assert process.returncode == 0, log
        assert set(server.seen.values()) == {1}
    assert results[0].read_text() == results[1].read_text()
