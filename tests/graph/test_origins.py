"""Cards: what is said of a result's origin."""

from datadreamer_like.graph.card import Card


def step(class_name, **fields):
    return Card("x", "step", class_name, **fields)


def test_rows_are_synthetic_where_a_language_model_wrote_any_that_they_came_from():
    real = step("CSVDataSource", rows=3)
    embedded = step("Embed", models=["org/encoder"], prompt_tokens=9, parents=[real])
    student = Card("Student", "trainer", "TrainHFClassifier", parents=[embedded])
    assert not student.is_synthetic()
    for made in (step("DataFromPrompt"), step("Mine", completion_tokens=5), step("Mine", prompts=["Write."])):
        mixed = step("Derived", parents=[real, made])
        assert Card("Student", "trainer", "TrainHFClassifier", parents=[mixed]).is_synthetic()


def test_a_card_comes_back_from_json_with_its_lineage_each_node_once():
    shared = step("CSVDataSource", rows=3)
    left, right = step("A", parents=[shared], facts={"k": "v"}), step("B", parents=[shared], metrics={"m": 0.5})
    card = Card("Top", "stage", "Compare", parents=[left, right])
    data = card.to_json()
    assert len(data["nodes"]) == 4
    back = Card.from_json(data)
    assert back == card
    assert back.parents[0].parents[0] is back.parents[1].parents[0]
