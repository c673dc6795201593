"""What the Hub refuses is one clear error before data is made or sent; what passes by itself is waited out."""

from __future__ import annotations

import traceback

import datasets
import pytest
from hub_server import HubServer
from huggingface_hub import constants

from datadreamer_like.errors import HubError
from datadreamer_like.graph.card import Card
from datadreamer_like.hub import publish_dataset

CARD = Card("Rows", "step", "DataSource", package_version="0.1.0")
ROWS = datasets.Dataset.from_dict({"text": ["a", "b"]})
SECRET = "hf_owner_wrong_token"


def refused(repo_id: str = "me/rows", **options: object) -> str:
    with pytest.raises(HubError) as refusal:
        publish_dataset(ROWS, repo_id, card=CARD, **options)
    return str(refusal.value)


def nothing_was_sent(hub: HubServer) -> bool:
    return not any(request.startswith(("PUT", "POST")) and "validate" not in request for request in hub.requests)


def test_a_wrong_token_is_one_error_that_does_not_show_it(hub: HubServer) -> None:
    message = refused(token=SECRET)
    assert "does not accept this token" in message
    assert "hf auth login" in message
    assert SECRET not in message
    assert hub.requests == ["GET /api/whoami-v2"]


def test_a_missing_token_says_where_to_get_one(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "There is no token" in refused()
    assert hub.requests == []


def test_a_token_of_impossible_characters_is_not_repeated_anywhere(hub: HubServer) -> None:
    token = "hf_ä\nsecret"
    with pytest.raises(HubError, match="contains invalid characters") as refusal:
        publish_dataset(ROWS, "me/rows", card=CARD, token=token)
    assert "secret" not in "".join(traceback.format_exception(refusal.value))


def test_a_token_with_a_line_end_still_works(hub: HubServer) -> None:
    assert publish_dataset(ROWS, "me/rows", card=CARD, token=hub.token + "\n").endswith("datasets/me/rows")


def test_a_token_that_only_reads_is_told_at_once(hub: HubServer) -> None:
    assert "is read-only" in refused(token="hf_owner_reads")
    assert nothing_was_sent(hub)


def test_a_foreign_namespace_lists_the_own_ones(hub: HubServer) -> None:
    message = refused("someone-else/rows")
    assert '"someone-else" is not a namespace of the token\'s owner' in message
    assert "me, my-team, my-readers" in message
    assert nothing_was_sent(hub)


def test_an_organization_of_readers_is_refused_and_one_of_writers_is_not(hub: HubServer) -> None:
    assert 'has read-only access to the organization "my-readers"' in refused("my-readers/rows")
    assert nothing_was_sent(hub)
    assert publish_dataset(ROWS, "my-team/rows", card=CARD) == f"{hub.url}/datasets/my-team/rows"


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/with space", "me/two..dots", "me/x.git", "-me/x", ""])
def test_a_name_that_the_hub_does_not_take_is_refused_here(hub: HubServer, repo_id: str) -> None:
    assert "is not a valid name on the Hub" in refused(repo_id)
    assert hub.requests == []


def test_a_right_that_the_hub_denies_later_is_one_error_too(hub: HubServer) -> None:
    hub.fail("POST /api/repos/create", status=403, times=9)
    assert 'This token may not write to "me/rows": try again later' in refused()


def test_a_branch_name_that_the_hub_does_not_take_is_told(hub: HubServer) -> None:
    assert "Invalid reference for a branch" in refused(branch="no..branch")


def test_an_unreachable_hub_is_told_at_once(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "The Hub cannot be reached" in refused()


def test_offline_mode_is_told(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused()


@pytest.mark.parametrize("request_", ["GET /api/whoami-v2", "PUT /lfs", "POST .*/preupload", "POST .*/commit"])
def test_a_failure_that_passes_is_waited_out(hub: HubServer, request_: str) -> None:
    hub.fail(request_, status=503)
    publish_dataset(ROWS, "me/rows", card=CARD)
    assert len(hub.commits("dataset", "me/rows")) == 1


def test_a_commit_whose_answer_was_lost_is_not_made_again(hub: HubServer) -> None:
    hub.fail("POST .*/commit")
    publish_dataset(ROWS, "me/rows", card=CARD)
    assert len(hub.commits("dataset", "me/rows")) == 1


@pytest.mark.parametrize("request_", ["GET .*/tree", "POST /api/repos/create", "POST .*/branch", "PUT /lfs"])
def test_a_connection_lost_on_the_way_is_made_again(hub: HubServer, request_: str) -> None:
    hub.fail(request_)
    publish_dataset(ROWS, "me/rows", card=CARD, branch="next")
    assert len(hub.commits("dataset", "me/rows", "next")) == 1


def test_a_change_by_someone_else_meanwhile_is_not_overwritten(hub: HubServer) -> None:
    publish_dataset(ROWS, "me/rows", card=CARD)
    hub.fail("POST .*/commit", status=412)
    assert "was changed by someone else meanwhile" in refused(is_synthetic=True)
    assert len(hub.commits("dataset", "me/rows")) == 1


def test_a_card_that_the_hub_does_not_take_is_refused_before_anything_is_made(hub: HubServer) -> None:
    message = refused(language=["xx", "english"])
    assert '"english" is not a language' in message
    hub.fail("POST /api/validate-yaml", status=400)
    assert 'rejects the card of "me/rows"' in refused()
    assert nothing_was_sent(hub)
