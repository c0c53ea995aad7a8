"""Resolving names to commits: tags, branches, commits, folders, and steps in many spellings."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.errors import IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps, pin_dataset, resolve
from hubmerge.hub.step_names import list_refs
from hubmerge.refs import ModelRef, Revision, parse_ref
from tests.hub.proxy import Proxy, replace_body


def commit(api: HfApi, repo: str, **files: str) -> str:
    """Commit files to main; `__` in a name is a slash, `_` is a dash."""
    operations = [
        CommitOperationAdd(name.replace("__", "/").replace("_", "-"), text.encode())
        for name, text in files.items()
    ]
    return str(api.create_commit(repo, operations, commit_message="files").oid)


def branch(api: HfApi, repo: str, *names: str) -> dict[str, str]:
    """Create a branch for each name, each at its own commit."""
    shas = {}
    for name in names:
        shas[name] = commit(api, repo, step=name)
        api.create_branch(repo, branch=name, revision=shas[name])
    return shas


def refs_of(tags: list[dict[str, str]]) -> bytes:
    """The refs of a Hub that has just these tags."""
    return json.dumps({"branches": [], "tags": tags, "converts": []}).encode()


def summarize(revisions: tuple[Revision, ...]) -> list[tuple[int | None, str | None, str]]:
    return [(item.step, item.ref.revision or item.ref.subfolder, item.origin) for item in revisions]


def test_a_tag_a_branch_and_a_commit_are_resolved(hub: Hub, repo: str, api: HfApi) -> None:
    sha = commit(api, repo, a="a")
    api.create_tag(repo, tag="step4", revision=sha)
    head = commit(api, repo, a="b")
    tagged = resolve(hub, parse_ref(f"{repo}@step4"))
    assert (tagged.sha, tagged.step, tagged.origin) == (sha, 4, "tag")
    main = resolve(hub, parse_ref(repo))
    assert (main.sha, main.step, main.origin) == (head, None, "branch")
    for text in (sha, sha[:12]):  # a label ends with 12 digits
        pinned = resolve(hub, parse_ref(f"{repo}@{text}"))
        assert (pinned.sha, pinned.origin) == (sha, "commit")


@pytest.mark.parametrize(
    ("name", "typed"),
    [
        ("step000064", "step64"),
        ("step64", "step000064"),
        ("step-000125", "step125"),
        ("global_step100", "step100"),
        ("step1000-tokens4B", "step1000"),
        ("stage1-step-40000", "step40000"),
        ("sft-step-000000100", "step100"),
        ("checkpoint-8", "step8"),
        ("step0", "step000"),
    ],
)
def test_a_step_is_found_in_any_spelling(
    hub: Hub, repo: str, api: HfApi, name: str, typed: str
) -> None:
    shas = branch(api, repo, name, "step7")
    revision = resolve(hub, parse_ref(f"{repo}@{typed}"))
    assert (revision.sha, revision.ref.revision, revision.origin) == (shas[name], name, "branch")
    assert revision.label == f"{repo}@{name}"


def test_the_plain_step_name_wins(hub: Hub, repo: str, api: HfApi) -> None:
    shas = branch(api, repo, "extension_step0001220", "step0001220")
    assert resolve(hub, parse_ref(f"{repo}@step1220")).sha == shas["step0001220"]
    extension = resolve(hub, parse_ref(f"{repo}@extension_step0001220"))
    assert extension.sha == shas["extension_step0001220"]


def test_a_step_of_two_stages_is_ambiguous(hub: Hub, repo: str, api: HfApi) -> None:
    shas = branch(api, repo, "stage1-step1000", "stage2-step1000", "stage1-step2000")
    with pytest.raises(UsageError, match="several revisions of step 1000") as caught:
        resolve(hub, parse_ref(f"{repo}@step1000"))
    assert f"{repo}@stage1-step1000 or {repo}@stage2-step1000" in caught.value.hint
    assert resolve(hub, parse_ref(f"{repo}@step2000")).sha == shas["stage1-step2000"]
    assert [step for step, *_ in summarize(list_steps(hub, repo))] == [1000, 1000, 2000]


def test_a_tag_hides_no_branch_of_another_stage(hub: Hub, repo: str, api: HfApi) -> None:
    shas = branch(api, repo, "stage2-step1000", "stage2-step2000", "stage1-step2000-tokens9B")
    for name in ("stage1-step1000", "stage1-step2000-tokens5B"):
        api.create_tag(repo, tag=name, revision=shas["stage2-step2000"])
    assert summarize(list_steps(hub, repo)) == [
        (1000, "stage1-step1000", "tag"),
        (1000, "stage2-step1000", "branch"),
        (2000, "stage1-step2000-tokens5B", "tag"),
        (2000, "stage2-step2000", "branch"),
    ]
    with pytest.raises(UsageError, match="several revisions"):
        resolve(hub, parse_ref(f"{repo}@step1000"))


def test_steps_are_sorted_and_a_tag_wins_over_a_branch_over_a_folder(
    hub: Hub, repo: str, api: HfApi
) -> None:
    main = commit(
        api, repo, checkpoint_2__config="2", checkpoint_16__config="16", checkpoint_4__config="4"
    )
    branch(api, repo, "step4", "step-8")
    api.create_tag(repo, tag="step8", revision=main)
    api.create_tag(repo, tag="best", revision=main)
    assert summarize(list_steps(hub, repo)) == [
        (2, "checkpoint-2", "folder"),
        (4, "step4", "branch"),
        (8, "step8", "tag"),
        (16, "checkpoint-16", "folder"),
    ]


def test_a_checkpoint_folder_is_resolved(hub: Hub, repo: str, api: HfApi) -> None:
    sha = commit(api, repo, checkpoint_8__config="8")
    for name in ("checkpoint-8", "step8"):
        revision = resolve(hub, parse_ref(f"{repo}@{name}"))
        assert (revision.sha, revision.step, revision.origin) == (sha, 8, "folder")
        assert revision.ref == ModelRef(repo, subfolder="checkpoint-8")
    api.create_tag(repo, tag="step8", revision=sha)
    assert resolve(hub, parse_ref(f"{repo}@checkpoint-8")).ref.subfolder == "checkpoint-8"
    assert resolve(hub, parse_ref(f"{repo}@step8")).ref.subfolder is None
    inner = resolve(hub, parse_ref(f"hf://{repo}@step0008/adapter"))
    assert (inner.ref.revision, inner.ref.subfolder) == ("step8", "adapter")


def test_a_file_is_not_a_checkpoint_folder(hub: Hub, repo: str, api: HfApi) -> None:
    commit(api, repo, checkpoint_8="a file", last_checkpoint__config="x")
    assert list_steps(hub, repo) == ()


def test_a_missing_revision_names_the_steps_that_exist(hub: Hub, repo: str, api: HfApi) -> None:
    with pytest.raises(NotOnHub, match="no revision 'step3'") as caught:
        resolve(hub, parse_ref(f"{repo}@step3"))
    assert "No name in it has a step" in caught.value.hint
    branch(api, repo, "step2", "step-004")
    for name in ("step3", "nightly", "deadbeef", "f" * 40):
        with pytest.raises(NotOnHub, match=f"no revision '{name}'") as caught:
            resolve(hub, parse_ref(f"{repo}@{name}"))
        assert caught.value.hint == f"It has the steps 2, 4: write {repo}@step-004."
    with pytest.raises(NotOnHub) as caught:
        resolve(hub, parse_ref(f"{repo}@step1"))
    assert caught.value.hint.endswith(f"write {repo}@step2.")  # the nearest step


def test_a_long_list_of_steps_is_shortened(hub: Hub, repo: str, proxy: Proxy) -> None:
    tags = [{"name": f"step{n}", "ref": "", "targetCommit": "a" * 40} for n in range(1000)]
    proxy.fail("GET .*/refs", replace_body(refs_of(tags)))
    with pytest.raises(NotOnHub) as caught:
        resolve(hub, parse_ref(f"{repo}@nightly"))
    assert "8, 9, ..., 999: write" in caught.value.hint


def test_a_missing_repository_is_an_error(hub: Hub) -> None:
    with pytest.raises(NotOnHub, match="the test Hub has no such repository"):
        resolve(hub, parse_ref("hub-tests/nowhere@step4"))


@pytest.mark.parametrize(
    ("name", "sha"),
    [
        ("../../step4", "a" * 40),
        ("step4\x1b[31m", "a" * 40),
        ("a\nstep4", "a" * 40),
        ("-step4", "a" * 40),
        ("step4", "../../../etc"),
        ("step4", ""),
    ],
)
def test_hostile_refs_are_left_out(hub: Hub, repo: str, proxy: Proxy, name: str, sha: str) -> None:
    tags = [{"name": name, "ref": "", "targetCommit": sha}]
    proxy.fail("GET .*/refs", replace_body(refs_of(tags)), times=2)
    assert list_refs(hub, repo).tags == {}
    assert list_steps(hub, repo) == ()


def test_hostile_folders_are_left_out(hub: Hub, repo: str, proxy: Proxy) -> None:
    entries = [{"type": "directory", "path": "checkpoint-/../../checkpoint-8", "oid": "a" * 40}]
    proxy.fail("GET .*/tree/", replace_body(json.dumps(entries).encode()))
    assert list_steps(hub, repo) == ()


def test_a_data_set_is_pinned(hub: Hub, repo: str, api: HfApi, proxy: Proxy) -> None:
    api.create_repo(repo, repo_type="dataset")
    sha = pin_dataset(hub, repo, "main")
    assert api.dataset_info(repo).sha == sha
    proxy.fail(
        "GET .*/api/datasets", replace_body(json.dumps({"id": repo, "sha": "../.."}).encode())
    )
    with pytest.raises(IntegrityError, match="returned an invalid commit"):
        pin_dataset(hub, repo, "main")
