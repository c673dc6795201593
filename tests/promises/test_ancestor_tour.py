"""The tasks of DataDreamer's tour as scripts for it: they run after one word is replaced, on models at hand.

The first of the nine, abstracts and tweets, is in `test_ancestor_scripts.py`. GPT-4 is a local server here, and models
of the Hub are tiny ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from hub_server import HubServer
from user_scripts import Script

from tests.trainers.fine_tuning_server import FineTuningServer

ATTRIBUTED = """
    import json
    from datadreamer import DataDreamer
    from datadreamer.llms import OpenAI
    from datadreamer.steps import DataFromAttributedPrompt, DataFromPrompt, ProcessWithPrompt

    with DataDreamer("./output"):
        gpt_4 = OpenAI(model_name="gpt-4")
        brands = DataFromPrompt(
            "Generate Brands",
            args={"llm": gpt_4, "n": 1, "temperature": 0.7, "instruction": "List brands of shoes, with commas."},
        )
        names = [name.strip() for name in brands.output["generations"][0].split(",")]
        reviews = DataFromAttributedPrompt(
            "Generate Shoe Reviews",
            args={
                "llm": gpt_4,
                "n": 12,
                "instruction": "Write a {sentiment} review of a {brand} shoe by {persona}.",
                "attributes": {"sentiment": ["kind", "angry"], "brand": names, "persona": ["a runner", "a nurse"]},
                "temperature": 1.1,
                "top_p": 1.0,
            },
            outputs={"generations": "reviews"},
        )
        sentiments = reviews.map(
            lambda row: {"text": row["reviews"], "sentiment": row["attributes"]["sentiment"]},
            remove_columns=["attributes", "prompts", "reviews"], lazy=False,
        )
        json.dump([list(sentiments.output), names], open("result.json", "w"))
"""

DISTIL = """
    import json, sys
    from datadreamer import DataDreamer
    from datadreamer.llms import OpenAI
    from datadreamer.steps import DataFromPrompt, ProcessWithPrompt
    from datadreamer.trainers import TrainOpenAIFineTune

    with DataDreamer("./output"):
        gpt_4 = OpenAI(model_name="gpt-4")
        questions = DataFromPrompt(
            "Generate ELI5 Questions",
            args={"llm": gpt_4, "n": 20, "temperature": 1.2, "instruction": "Ask a question that a child would ask."},
            outputs={"generations": "questions"},
        )
        answered = ProcessWithPrompt(
            "Generate Answers",
            inputs={"inputs": questions.output["questions"]},
            args={"llm": gpt_4, "instruction": "Answer the question for a child of five.", "top_p": 1.0},
            outputs={"inputs": "questions", "generations": "answers"},
        )
        splits = answered.splits(train_size=0.90, validation_size=0.10)
        trainer = TrainOpenAIFineTune("Distill to a smaller GPT", model_name="gpt-3.5-turbo-1106", base_url=sys.argv[1])
        trainer.train(
            train_input=splits["train"].output["questions"],
            train_output=splits["train"].output["answers"],
            validation_input=splits["validation"].output["questions"],
            validation_output=splits["validation"].output["answers"],
            epochs=2,
            batch_size=4,
        )
        sizes = {name: len(split.output) for name, split in splits.items()}
        json.dump([trainer.model, sizes], open("result.json", "w"))
"""

AUGMENT = """
    import json
    from datadreamer import DataDreamer
    from datadreamer.llms import OpenAI
    from datadreamer.steps import JSONDataSource, ProcessWithPrompt, zipped

    with DataDreamer("./output"):
        gpt_4 = OpenAI(model_name="gpt-4")
        questions = JSONDataSource("Load multi-hop questions", data_files="questions.jsonl")
        questions = questions.select_columns(["question"]).take(4)
        decomposed = ProcessWithPrompt(
            "Decompose Questions",
            inputs={"inputs": questions.output["question"]},
            args={
                "llm": gpt_4,
                "instruction": "Break the question into simpler ones, separated by semicolons.",
                "top_p": 1.0,
                "post_process": lambda text: [part.strip() for part in text.split(";")],
            },
            outputs={"inputs": "question", "generations": "decomposition"},
        )
        decomposed.select_columns(["question", "decomposition"]).export_to_json("decomposed.jsonl", lines=True)
        json.dump(list(decomposed.output["decomposition"]), open("result.json", "w"))
"""

CLEAN = """
    import json
    from datadreamer import DataDreamer
    from datadreamer.llms import OpenAI
    from datadreamer.steps import CSVDataSource, FilterWithPrompt, zipped

    with DataDreamer("./output"):
        gpt_4 = OpenAI(model_name="gpt-4")
        articles = CSVDataSource("Load articles", data_files=["articles.csv"]).shuffle(seed=42)
        kept = FilterWithPrompt(
            "Filter to mentions of an author",
            inputs={"inputs": articles.output["text"]},
            args={"llm": gpt_4, "instruction": "Does the text name its author? Answer 'Yes' or 'No'.", "top_p": 1.0},
        )
        cleaned = kept.filter(lambda row: row["id"] >= 0).sort("id").save("Cleaned")
        json.dump(list(cleaned.output), open("result.json", "w"))
"""

BOOTSTRAP = """
    import json
    from datadreamer import DataDreamer
    from datadreamer.llms import OpenAI
    from datadreamer.steps import DataFromPrompt, FewShotPrompt, ProcessWithPrompt, RankWithPrompt, zipped

    with DataDreamer("./output"):
        gpt_4 = OpenAI(model_name="gpt-4")
        gpt_3 = OpenAI(model_name="gpt-3.5-turbo")
        sentences = DataFromPrompt(
            "Generate Sentences",
            args={"llm": gpt_4, "n": 6, "temperature": 1.2, "instruction": "Write a short sentence in Tagalog."},
            outputs={"generations": "tagalog"},
        )
        translated = ProcessWithPrompt(
            "Translate the Sentences",
            inputs={"inputs": sentences.output["tagalog"]},
            args={"llm": gpt_4, "instruction": "Translate it into English.", "top_p": 1.0},
            outputs={"inputs": "tagalog", "generations": "english"},
        )
        ranked = RankWithPrompt(
            "Rank the Translations",
            inputs={"inputs": translated.output["english"]},
            args={"llm": gpt_4, "instruction": "Score the sentence from 1 to 10.", "score_threshold": 3},
        )
        best = ranked.take(3)
        tests = DataFromPrompt(
            "More Sentences",
            args={"llm": gpt_4, "n": 2, "instruction": "Write another short sentence in Tagalog."},
            outputs={"generations": "tagalog"},
        )
        few_shot = FewShotPrompt(
            "Translate with Few Examples",
            inputs={
                "input_examples": best.output["tagalog"],
                "output_examples": best.output["english"],
                "inputs": tests.output["tagalog"],
            },
            args={
                "llm": gpt_3, "input_label": "Tagalog:", "output_label": "English:",
                "instruction": "Translate from Tagalog to English.", "max_new_tokens": 50,
            },
            outputs={"inputs": "tagalog", "generations": "english"},
        )
        json.dump([list(ranked.output["scores"]), few_shot.output["prompts"][0]], open("result.json", "w"))
"""

TUNE = """
    import json, sys
    from datadreamer import DataDreamer
    from datadreamer.steps import JSONDataSource
    from datadreamer.trainers import TrainHFFineTune
    from peft import LoraConfig

    with DataDreamer("./output"):
        instructions = JSONDataSource("Get the instructions", data_files="instructions.jsonl")
        instructions = instructions.filter(lambda row: row["input"] == "", lazy=False).take(24)
        instructions = instructions.map(
            lambda row: {"instruction": row["instruction"].strip(), "output": row["output"]},
            remove_columns=["input"], lazy=False,
        )
        splits = instructions.splits(train_size=0.75, validation_size=0.25)
        trainer = TrainHFFineTune(
            "Instruction-Tune a small model",
            model_name=sys.argv[1],
            chat_prompt_template="### Instruction:\\n{{prompt}}\\n\\n### Response:\\n",
            peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
            device="cpu",
            dtype="float32",
        )
        trainer.train(
            train_input=splits["train"].output["instruction"],
            train_output=splits["train"].output["output"],
            validation_input=splits["validation"].output["instruction"],
            validation_output=splits["validation"].output["output"],
            epochs=1,
            batch_size=4,
            gradient_accumulation_steps=2,
        )
        trainer.export_to_disk("./tuned", adapter_only=True)
        json.dump([str(trainer.model_path)], open("result.json", "w"))
"""

ALIGN = """
    import json, sys
    from datadreamer import DataDreamer
    from datadreamer.steps import JSONDataSource
    from datadreamer.trainers import TrainHFDPO
    from peft import LoraConfig

    with DataDreamer("./output"):
        preferences = JSONDataSource("Get the preferences", data_files="preferences.jsonl").take(12)
        pairs = preferences.map(
            lambda row: {"prompts": row["question"], "chosen": row["good"], "rejected": row["bad"]},
            remove_columns=["question", "good", "bad"], lazy=False,
        )
        splits = pairs.splits(train_size=0.75, validation_size=0.25)
        trainer = TrainHFDPO(
            "Align a small chat model",
            model_name=sys.argv[1],
            peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
            device="cpu",
        )
        trainer.train(
            train_prompts=splits["train"].output["prompts"],
            train_chosen=splits["train"].output["chosen"],
            train_rejected=splits["train"].output["rejected"],
            validation_prompts=splits["validation"].output["prompts"],
            validation_chosen=splits["validation"].output["chosen"],
            validation_rejected=splits["validation"].output["rejected"],
            epochs=1,
            batch_size=3,
            gradient_accumulation_steps=1,
        )
        trainer.publish_to_hf_hub("me/aligned")
        json.dump([str(trainer.model_path)], open("result.json", "w"))
"""

SELF_REWARD = """
    import json, sys
    from datadreamer import DataDreamer
    from datadreamer.llms import HFTransformers, OpenAI
    from datadreamer.steps import JSONDataSource, JudgeGenerationPairsWithPrompt, Prompt, zipped
    from datadreamer.trainers import TrainHFDPO
    from peft import LoraConfig

    with DataDreamer("./output"):
        prompts = JSONDataSource("Get the prompts", data_files="instructions.jsonl").select_columns(["instruction"])
        prompts = prompts.take(8)
        gpt_4 = OpenAI(model_name="gpt-4")
        adapter, winners = None, []
        for number in range(2):
            llm = HFTransformers(model_name=sys.argv[1], adapter_name=adapter, device="cpu")
            sampled = Prompt(
                f"Sample Two Responses (round #{number + 1})",
                inputs={"prompts": prompts.output["instruction"]},
                args={"llm": llm, "batch_size": 4, "top_p": 1.0, "n": 2, "max_new_tokens": 5},
                outputs={"generations": "responses"},
            )
            llm.unload_model()
            two = sampled.map(
                lambda row: {"prompts": row["prompts"], "a": row["responses"][0], "b": row["responses"][1]},
                remove_columns=["responses"], lazy=False,
            )
            judged = JudgeGenerationPairsWithPrompt(
                f"Judge (round #{number + 1})",
                inputs={"prompts": two.output["prompts"], "a": two.output["a"], "b": two.output["b"]},
                args={"llm": gpt_4, "top_p": 1.0},
            )
            pairs = judged.map(
                lambda row: {
                    "prompts": row["prompts"],
                    "chosen": row["a"] if row["judgements"] == "Response A" else row["b"],
                    "rejected": row["b"] if row["judgements"] == "Response A" else row["a"],
                },
                lazy=False,
            )
            winners += list(judged.output["judgements"])
            splits = pairs.splits(train_size=0.75, validation_size=0.25)
            trainer = TrainHFDPO(
                f"Self-Reward Align (round #{number + 1})",
                model_name=sys.argv[1],
                peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
                device="cpu",
            )
            trainer.train(
                train_prompts=splits["train"].output["prompts"],
                train_chosen=splits["train"].output["chosen"],
                train_rejected=splits["train"].output["rejected"],
                validation_prompts=splits["validation"].output["prompts"],
                validation_chosen=splits["validation"].output["chosen"],
                validation_rejected=splits["validation"].output["rejected"],
                epochs=1,
                batch_size=3,
            )
            trainer.unload_model()
            adapter = trainer.model_path
        json.dump([winners, str(adapter)], open("result.json", "w"))
"""

QUICK = """
from datadreamer_like.trainers import TrainOpenAIFineTune

TrainOpenAIFineTune.poll_seconds = 0.01
"""
"""Added to scripts, so that nothing waits for a job that is done."""


@pytest.fixture
def run(tmp_path: Path, hub_server: HubServer) -> Callable[..., Any]:
    """Runs a script with the package's name replaced, in a folder with its data, and returns the result it wrote."""
    rows = [{"instruction": f" Name thing {n} ", "input": "x" * (n % 2), "output": f"The cat {n}."} for n in range(60)]
    pairs = [{"question": f"Where is cat {n}?", "good": "On the mat.", "bad": "The sun rose."} for n in range(12)]
    questions = [{"question": f"Who leads the land of city {n}?", "level": "hard"} for n in range(6)]
    for name, table in (("instructions", rows), ("preferences", pairs), ("questions", questions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    articles = [f'{n},"Text {n} by {"Ada" if n % 3 else "nobody"}."' for n in range(9)]
    (tmp_path / "articles.csv").write_text("\n".join(["id,text", *articles]) + "\n")

    def run(source: str, *arguments: str, before: str = "", **variables: str) -> Any:
        script = Script(re.sub(r"\bdatadreamer\b", "datadreamer_like", source), tmp_path / "script.py", warm=True)
        script.file.write_text(before + script.file.read_text())
        script.run(*arguments, **{**hub_server.environment(tmp_path / "home"), **variables})
        return json.loads((tmp_path / "result.json").read_text())

    return run


def gpt_4(body: dict[str, Any], before: int) -> Reply:
    """Answers each of the scripts' prompts."""
    prompt = prompt_of(body)
    chance = random.Random(f"{prompt} {before}")
    if "brands" in prompt:
        return Reply("Alba, Borea")
    if "simpler ones" in prompt:
        return Reply(f"Which land has {re.findall('city [0-9]+', prompt)[0]}?; Who leads it?")
    if "name its author" in prompt:
        return Reply("Yes." if "Ada" in prompt else "No.")
    if "from 1 to 10" in prompt:
        return Reply(str(1 + int(re.findall("Answer ([0-9]+)", prompt)[-1]) % 10))
    if "Response A:" in prompt:
        return Reply(chance.choice(["Response A", "Response B"]))
    return Reply(f"Answer {chance.randrange(10**6)} to {prompt[:30]}")


@pytest.fixture
def openai() -> Any:
    with FlakyServer(gpt_4) as server:
        yield {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": server.url}


def test_reviews_by_attributes(run: Callable[..., Any], openai: dict[str, str]) -> None:
    rows, names = run(ATTRIBUTED, **openai)
    assert names == ["Alba", "Borea"]
    assert [row["sentiment"] for row in rows] == ["kind"] * 4 + ["angry"] * 4 + ["kind"] * 4
    assert all(row.keys() == {"text", "sentiment"} for row in rows)


def test_a_large_model_of_an_api_teaches_a_small_one_of_it(run: Callable[..., Any], openai: dict[str, str]) -> None:
    with FineTuningServer([{"status": "succeeded"}]) as tuning:
        model, sizes = run(DISTIL, tuning.url, before=QUICK, **openai)
        (settings,) = tuning.created
    assert model == "ft:gpt-3.5-turbo-1106:org::ftjob-0"
    assert sizes == {"train": 18, "validation": 2}
    assert settings["method"]["supervised"]["hyperparameters"] == {"n_epochs": 2, "batch_size": 4}


def test_a_dataset_is_augmented(run: Callable[..., Any], openai: dict[str, str], tmp_path: Path) -> None:
    found = run(AUGMENT, **openai)
    assert found == [[f"Which land has city {n}?", "Who leads it?"] for n in range(4)]
    lines = [json.loads(line) for line in (tmp_path / "decomposed.jsonl").read_text().splitlines()]
    assert [line["decomposition"] for line in lines] == found


def test_a_dataset_is_cleaned(run: Callable[..., Any], openai: dict[str, str]) -> None:
    rows = run(CLEAN, **openai)
    assert [row["id"] for row in rows] == [1, 2, 4, 5, 7, 8]
    assert rows[0]["text"] == "Text 1 by Ada."


def test_few_shot_examples_are_bootstrapped(run: Callable[..., Any], openai: dict[str, str]) -> None:
    scores, prompt = run(BOOTSTRAP, **openai)
    assert scores == sorted(scores, reverse=True)
    assert prompt.startswith("Translate from Tagalog to English.\n\nTagalog: ")
    assert prompt.endswith("\nEnglish:")
    assert prompt.count("English: Answer") == 3


@pytest.mark.slow
def test_a_model_is_tuned_on_instructions(run: Callable[..., Any], tmp_path: Path, tiny_causal_lm: Path) -> None:
    run(TUNE, str(tiny_causal_lm))
    assert (tmp_path / "tuned" / "adapter_config.json").exists()


@pytest.mark.slow
def test_a_chat_model_is_aligned(run: Callable[..., Any], hub_server: HubServer, tiny_causal_lm: Path) -> None:
    run(ALIGN, str(tiny_causal_lm))
    assert "model.safetensors" in hub_server.files("model", "me/aligned")


@pytest.mark.slow
def test_a_model_rewards_itself(run: Callable[..., Any], openai: dict[str, str], tiny_causal_lm: Path) -> None:
    winners, adapter = run(SELF_REWARD, str(tiny_causal_lm), **openai)
    assert len(winners) == 16
    assert set(winners) == {"Response A", "Response B"}
    assert Path(adapter).is_dir()
