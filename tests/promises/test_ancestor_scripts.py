"""A script written for DataDreamer runs after `datadreamer` is replaced by `datadreamer_like`, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from hub_server import HubServer
from user_scripts import Script

# The scripts are as their users wrote them; where a model's name stood, there is now what a test has at hand.
SYNTHESIZE = """
    import json, os, sys
    from datadreamer import DataDreamer
    from datadreamer.llms import OpenAI
    from datadreamer.steps import (
        DataFromAttributedPrompt,
        DataFromPrompt,
        DataSource,
        FilterWithPrompt,
        ProcessWithPrompt,
        RankWithPrompt,
        concat,
        zipped,
    )

    with DataDreamer("./output"):
        gpt_4 = OpenAI(model_name="gpt-4", system_prompt="You are a researcher.", retry_on_fail=True)

        # Generate 10 abstracts of research papers
        arxiv_dataset = DataFromPrompt(
            "Generate Research Paper Abstracts",
            args={
                "llm": gpt_4,
                "n": 10,
                "temperature": 1.2,
                "instruction": (
                    "Generate an arXiv abstract of an NLP research paper."
                    " Return just the abstract, no titles."
                ),
            },
            outputs={"generations": "abstracts"},
        )

        # Ask GPT-4 to convert the abstracts to tweets
        abstracts_and_tweets = ProcessWithPrompt(
            "Generate Tweets from Abstracts",
            inputs={"inputs": arxiv_dataset.output["abstracts"]},
            args={
                "llm": gpt_4,
                "instruction": "Given the abstract, write a tweet to summarize the work.",
                "top_p": 1.0,
                "batch_size": 5,
                "post_process": lambda tweet: tweet.strip(),
            },
            outputs={"inputs": "abstracts", "generations": "tweets"},
        )

        kept = FilterWithPrompt(
            "Keep the short ones",
            inputs={"inputs": abstracts_and_tweets.output["tweets"]},
            args={"llm": gpt_4, "instruction": "Is this tweet short? Answer Yes or No.", "max_new_tokens": 5},
        )
        ranked = RankWithPrompt(
            "Rank them",
            inputs={"inputs": kept.output["tweets"]},
            args={"llm": gpt_4, "instruction": "How good is this tweet, from 1 to 10?", "score_threshold": 3},
        )
        attributed = DataFromAttributedPrompt(
            "Reviews",
            args={
                "llm": gpt_4,
                "n": 6,
                "instruction": "Write a {sentiment} review of a {thing}.",
                "attributes": {"sentiment": ["good", "bad"], "thing": ["book", "film", "game"]},
            },
        )

        reviews = attributed.select_columns(["generations"], name="Only reviews").rename_column("generations", "tweets")
        more = ranked.select_columns(["tweets"])
        both = concat(more, reviews, name="All texts").shuffle(seed=42, lazy=False)
        lengths = both.map(lambda row: {"length": len(row["tweets"])}, remove_columns=["tweets"], lazy=False)
        table = zipped(both, lengths).save(name="With lengths", save_num_proc=1)
        splits = table.splits(train_size=0.8, validation_size=0.2)

        print(both.head(n=3))
        abstracts_and_tweets.data_card()
        print(abstracts_and_tweets.output.num_rows, abstracts_and_tweets.output.column_names)
        table.export_to_json("table.jsonl")
        table.export_to_csv("table.csv", train_size=0.5, test_size=0.5)
        abstracts_and_tweets.publish_to_hf_hub(
            "me/abstracts_and_tweets", train_size=0.90, validation_size=0.10, token=os.environ["HF_TOKEN"]
        )
        json.dump(
            {
                "scores": list(ranked.output["scores"]),
                "splits": {name: len(split.output) for name, split in splits.items()},
                "attributes": list(attributed.output["attributes"]),
                "card": sorted(card.name for card in abstracts_and_tweets.card.lineage()),
                "first": abstracts_and_tweets.output[0],
            },
            open("result.json", "w"),
        )
"""

RETRIEVE = """
    import json, sys
    from datadreamer import DataDreamer
    from datadreamer.embedders import SentenceTransformersEmbedder
    from datadreamer.llms import HFTransformers
    from datadreamer.retrievers import EmbeddingRetriever
    from datadreamer.steps import CosineSimilarity, DataSource, Embed, RAGPrompt, Retrieve, wait, concurrent

    embedder_name, llm_name = sys.argv[1:]
    with DataDreamer("./output"):
        corpus = DataSource(
            "Corpus", {"texts": ["A cat sat on a mat.", "Trains run on rails.", "Bread is baked from flour."]}
        )
        embedder = SentenceTransformersEmbedder(model_name=embedder_name)
        vectors = Embed(
            name="Embed", inputs={"texts": corpus.output["texts"]}, args={"embedder": embedder, "truncate": True}
        )
        retriever = EmbeddingRetriever(texts=corpus.output["texts"], embedder=embedder)
        queries = DataSource("Queries", {"queries": ["Where is the kitten?", "How do I make a loaf?"]})
        found = Retrieve(
            "Retrieve",
            inputs={"queries": queries.output["queries"]},
            args={"retriever": retriever, "k": 2},
            outputs={"results": "documents"},
        )
        similar = CosineSimilarity(
            "Alike", inputs={"a": vectors.output["embeddings"], "b": vectors.output["embeddings"]}
        )
        answers = RAGPrompt(
            "Answer",
            inputs={"prompts": queries.output["queries"]},
            args={"retriever": retriever, "k": 1, "llm": HFTransformers(model_name=llm_name), "max_new_tokens": 4},
            background=True,
        )
        wait(answers)
        embedder.unload_model()
        json.dump(
            {
                "dims": len(vectors.output["embeddings"][0]),
                "found": [row["texts"][0] for row in found.output["documents"]],
                "similarities": [round(value, 3) for value in similar.output["similarities"]],
                "prompts": list(answers.output["prompts"]),
                "generations": list(answers.output["generations"]),
            },
            open("result.json", "w"),
        )
"""

TRAIN = """
    import json, sys
    from datadreamer import DataDreamer
    from datadreamer.llms import HFTransformers
    from datadreamer.steps import DataSource, Prompt
    from datadreamer.trainers import TrainHFClassifier, TrainHFFineTune
    from peft import LoraConfig

    classifier_name, llm_name = sys.argv[1:]
    with DataDreamer("./output"):
        words = ["cat", "dog", "train", "tea", "sun", "bread"]
        dataset = DataSource(
            "Rows",
            {
                "text": [f"The {words[i % 6]} was number {i}" for i in range(30)],
                "label": ["animal" if i % 6 < 2 else "thing" for i in range(30)],
            },
        )
        splits = dataset.splits(train_size=0.8, validation_size=0.2)
        classifier = TrainHFClassifier("Train a classifier", model_name=classifier_name, device="cpu")
        classifier.train(
            train_input=splits["train"].output["text"],
            train_output=splits["train"].output["label"],
            validation_input=splits["validation"].output["text"],
            validation_output=splits["validation"].output["label"],
            truncate=True,
            epochs=2,
            batch_size=8,
            optim="adamw_torch",
            learning_rate=1e-3,
            weight_decay=0.01,
            lr_scheduler_type="linear",
            warmup_steps=0,
            gradient_accumulation_steps=2,
            early_stopping_patience=2,
        )
        tuner = TrainHFFineTune(
            "Train a small LLM",
            model_name=llm_name,
            chat_prompt_template="<|user|>{{prompt}}<eos><|assistant|>",
            peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
            device="cpu",
        )
        tuner.train(
            splits["train"].output["label"],
            splits["train"].output["text"],
            splits["validation"].output["label"],
            splits["validation"].output["text"],
            True,
            1,
            batch_size=8,
            gradient_accumulation_steps=1,
        )
        classifier.export_to_disk("./classifier")
        tuner.export_to_disk("./tuned")
        classifier.publish_to_hf_hub(repo_id="me/classifier")
        tuner.export_to_disk("./adapter", adapter_only=True)
        tuner.publish_to_hf_hub(repo_id="me/tuned", private=True)
        tuned = HFTransformers(tuner.model_path, device="cpu")
        answers = Prompt(
            "Ask it", inputs={"prompts": splits["validation"].output["label"]}, args={"llm": tuned, "max_new_tokens": 3}
        )
        json.dump({"answers": list(answers.output["generations"])}, open("result.json", "w"))
        classifier.unload_model()
        classifier.model_card()
"""

CUSTOM = """
    import json
    from datadreamer import DataDreamer
    from datadreamer.steps import DataSource, LazyRowBatches, LazyRows, Step, SuperStep, wait

    class Sentences(Step):
        def setup(self):
            self.register_input("texts", help="The texts.")
            self.register_arg("sep", required=False, default=".", help="The separator.")
            self.register_output("sentences")
            self.register_output("number")
            self.register_data_card("Citation", "Somebody, 2024")

        def run(self):
            def rows():
                for text in self.inputs["texts"]:
                    for number, sentence in enumerate(text.split(self.args["sep"])):
                        yield {"sentences": sentence, "number": number}

            return LazyRows(rows, total_num_rows=None, auto_progress=False)

    class Twice(SuperStep):
        def setup(self):
            self.register_input("texts")
            self.register_output("texts")

        def run(self):
            inner = DataSource("Inner", {"texts": list(self.inputs["texts"]) * 2})
            return inner.output["texts"]

    class Objects(Step):
        def setup(self):
            self.register_output("thing")

        def run(self):
            for i in range(3):
                self.progress = i / 3
            return [self.pickle({i}) for i in range(3)]

    with DataDreamer("./output") as session:
        source = DataSource("Texts", [{"texts": "a.b"}, {"texts": "c.d"}])
        split = Sentences("Split", inputs={"texts": source.output["texts"]}, outputs={"sentences": "parts"})
        saved = split.save(name="Saved")
        twice = Twice("Twice", inputs={"texts": source.output["texts"]})
        objects = Objects("Objects", background=True)
        wait(objects)
        batches = split.map(lambda part: {"parts": [p * 2 for p in part["parts"]]}, batched=True, batch_size=2)
        json.dump(
            {
                "parts": list(saved.output["parts"]),
                "twice": list(twice.output["texts"]),
                "objects": [sorted(thing) for thing in objects.output["thing"]],
                "batches": list(batches.output["parts"]),
                "names": [split.name, saved.name, Sentences("Split", inputs={"texts": source.output["texts"]}).name],
                "help": Sentences.help,
            },
            open("result.json", "w"),
        )
"""


def replaced(source: str) -> str:
    """Replaces the package's name, as its users are told to."""
    return re.sub(r"\bdatadreamer\b", "datadreamer_like", source)


@pytest.fixture
def run(tmp_path: Path, hub_server: HubServer) -> Callable[..., dict[str, Any]]:
    """Runs a script and returns the result that it wrote."""

    def run(source: str, *arguments: str, **variables: str) -> dict[str, Any]:
        environment = {**hub_server.environment(tmp_path / "home"), **variables}
        Script(replaced(source), tmp_path / "script.py", list(arguments), warm=True).run(**environment)
        return json.loads((tmp_path / "result.json").read_text())  # type: ignore[no-any-return]

    return run


def test_synthesizing_with_an_api_model(
    tmp_path: Path, run: Callable[..., dict[str, Any]], hub_server: HubServer
) -> None:
    def answer(body: dict[str, Any], before: int) -> Reply:
        assert body["messages"][0] == {"role": "system", "content": "You are a researcher."}
        prompt = prompt_of(body)
        if "arXiv abstract" in prompt:
            return Reply(f"Abstract {before}")
        if "write a tweet" in prompt:
            return Reply(f"  Tweet on {prompt.split('Abstract ')[1].split()[0]} ")
        number = int(re.findall(r"Tweet on (\d+)", prompt)[0]) if "Tweet on" in prompt else 0
        if "short" in prompt:
            return Reply("Yes." if number % 2 else "No.")
        if "from 1 to 10" in prompt:
            return Reply(f"Score: {number}")
        return Reply(f"A review: {prompt}")

    with FlakyServer(answer) as server:
        result = run(SYNTHESIZE, OPENAI_API_KEY="sk-test", OPENAI_BASE_URL=server.url)
        assert server.seen.total() == 10 + 10 + 10 + 5 + 6
    assert result["scores"] == [9.0, 7.0, 5.0, 3.0]
    assert result["splits"] == {"train": 8, "validation": 2}
    assert result["attributes"][0] == {"sentiment": "good", "thing": "book"}
    assert sorted(result["first"]) == ["abstracts", "prompts", "tweets"]
    assert result["first"]["tweets"].startswith("Tweet on ")
    assert result["card"] == ["Generate Research Paper Abstracts", "Generate Tweets from Abstracts"]
    assert len((tmp_path / "table.jsonl").read_text().splitlines()) == 10
    assert (tmp_path / "table.train.csv").exists()
    assert {"train", "validation"} == {
        Path(name).name.split("-")[0]
        for name in hub_server.files("dataset", "me/abstracts_and_tweets")
        if name.endswith(".parquet")
    }


@pytest.mark.slow
def test_embedding_and_retrieving(run: Callable[..., dict[str, Any]], minilm_path: Path, tiny_causal_lm: Path) -> None:
    result = run(RETRIEVE, str(minilm_path), str(tiny_causal_lm))
    assert result["dims"] == 384
    assert result["found"] == ["A cat sat on a mat.", "Bread is baked from flour."]
    assert result["similarities"] == [1.0, 1.0, 1.0]
    assert "A cat sat on a mat." in result["prompts"][0]
    assert all(isinstance(text, str) for text in result["generations"])


@pytest.mark.slow
def test_training_exporting_and_publishing(
    tmp_path: Path,
    run: Callable[..., dict[str, Any]],
    tiny_classifier_base: Path,
    tiny_causal_lm: Path,
    hub_server: HubServer,
) -> None:
    result = run(TRAIN, str(tiny_classifier_base), str(tiny_causal_lm))
    assert len(result["answers"]) == 6
    for folder, file in (("classifier", "config.json"), ("tuned", "config.json"), ("adapter", "adapter_config.json")):
        assert (tmp_path / folder / file).exists()
    for name in ("me/classifier", "me/tuned"):
        assert "model.safetensors" in hub_server.files("model", name)
        assert len(hub_server.commits("model", name)) == 1


def test_steps_of_ones_own(run: Callable[..., dict[str, Any]]) -> None:
    result = run(CUSTOM)
    assert result["parts"] == ["a", "b", "c", "d"]
    assert result["twice"] == ["a.b", "c.d"] * 2
    assert result["objects"] == [[0], [1], [2]]
    assert result["batches"] == ["aa", "bb", "cc", "dd"]
    assert result["names"] == ["Split", "Saved", "Split #2"]
    assert "sep (optional" in result["help"]
