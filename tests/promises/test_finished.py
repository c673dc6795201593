"""A finished script that runs again does no work; two processes with one folder do it once."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
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
        script = Script(FINISHED, tmp_path / "script.py", [str(folder), server.url, str(tiny_causal_lm), str(result)])
        assert "torch" in script.run().stdout
        files, rows, sent = files_of(folder), json.loads(result.read_text()), server.seen.total()
        assert sent == 21
        again = script.run()
        assert server.seen.total() == sent
    assert again.stdout.split() == []
    assert again.stderr.count("found finished") == len(list(folder.glob("*/node.json")))
    assert files_of(folder) == files
    assert json.loads(result.read_text()) == rows


TRAINED = """
    import sys
    from torch.nn.modules.module import register_module_module_registration_hook
    from datadreamer_like import DataDreamer, pruning, quantization
    from datadreamer_like.distillation import SoftTargets
    from datadreamer_like.stages import Compare, Prune, Quantize
    from datadreamer_like.steps import DataSource
    from datadreamer_like.trainers import TrainHFClassifier

    folder, base = sys.argv[1:]
    layers = 0

    def count(module, name, submodule):
        global layers
        layers += 1

    register_module_module_registration_hook(count)
    words = ["cat", "dog", "train", "tea", "sun", "bread"]
    kinds = ["animal", "animal", "thing", "thing", "thing", "thing"]
    rows = [{"text": f"The {words[i % 6]} was number {i}.", "label": kinds[i % 6]} for i in range(24)]
    with DataDreamer(folder):
        data = DataSource("Rows", data=rows)
        columns = {
            f"{split}_{kind}": data.output[column]
            for split in ("train", "validation")
            for kind, column in (("input", "text"), ("output", "label"))
        }
        options = {"epochs": 1, "batch_size": 12, "learning_rate": 1e-3}
        teacher = TrainHFClassifier("Teacher", model_name=base, device="cpu").train(**columns, **options)
        student = TrainHFClassifier("Student", model_name=base, device="cpu")
        student.train(**columns, **options, objective=SoftTargets(teacher))
        slim = Prune("Slim", model=student, method=pruning.Heads(sparsity=0.5), calibration=data.output["text"])
        small = Quantize("Small", model=slim, method=quantization.DynamicInt8())
        Compare(
            "Compared", models=[teacher, student, slim, small], inputs=data.output["text"], labels=data.output["label"]
        )
    print(layers)
"""


@pytest.mark.slow
def test_finished_trainers_and_stages_build_no_model_and_change_no_file(
    tmp_path: Path, tiny_classifier_base: Path
) -> None:
    folder = tmp_path / "session"
    script = Script(TRAINED, tmp_path / "script.py", [str(folder), str(tiny_classifier_base)])
    assert int(script.run().stdout) > 0
    files = files_of(folder)
    assert script.run().stdout.strip() == "0"
    assert files_of(folder) == files


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
        two = second.start()
        assert two.stderr is not None
        said = next(line for line in two.stderr if "another process" in line)
        assert said.startswith('"Answers": another process is working on it; waiting')
        one.send_signal(signal.SIGCONT)
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
