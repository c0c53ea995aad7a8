"""Collections of repositories."""

from __future__ import annotations

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError


def test_a_collection_is_filled_ordered_and_deleted(
    api: HfApi, anonymous: HfApi, repo: str
) -> None:
    api.create_repo("tests/in-a-collection", repo_type="dataset", exist_ok=True)
    made = api.create_collection("Good steps", namespace="tests", description="d")
    assert made.slug.startswith("tests/good-steps-")
    again = api.create_collection("Good steps", namespace="tests", exists_ok=True)
    assert again.slug == made.slug
    api.add_collection_item(made.slug, repo, "model", note="step 8")
    filled = api.add_collection_item(made.slug, "tests/in-a-collection", "dataset")
    api.add_collection_item(made.slug, repo, "model", exists_ok=True)
    with pytest.raises(HfHubHTTPError, match="already"):
        api.add_collection_item(made.slug, repo, "model")
    with pytest.raises(HfHubHTTPError, match="has no model 'tests/none'"):
        api.add_collection_item(made.slug, "tests/none", "model")
    api.update_collection_item(made.slug, filled.items[1].item_object_id, position=0, note="first")
    read = anonymous.get_collection(made.slug)
    assert [(item.item_id, item.note) for item in read.items] == [
        ("tests/in-a-collection", "first"),
        (repo, "step 8"),
    ]
    assert [item.slug for item in api.list_collections(owner="tests", item=f"models/{repo}")] == [
        made.slug
    ]
    renamed = api.update_collection_metadata(made.slug, title="Best", private=True)
    assert (renamed.title, renamed.private) == ("Best", True)
    assert renamed.slug == made.slug.replace("good-steps", "best")
    assert api.get_collection(made.slug).slug == renamed.slug  # the old slug stays valid
    with pytest.raises(EntryNotFoundError):
        anonymous.get_collection(made.slug)
    api.delete_collection_item(made.slug, filled.items[1].item_object_id)
    api.delete_repo(repo)
    assert api.get_collection(made.slug).items == []
    with pytest.raises(HfHubHTTPError, match="401"):
        anonymous.create_collection("x", namespace="tests")
    api.delete_collection(made.slug)
    api.delete_collection(made.slug, missing_ok=True)
