"""Names become commits: tags, branches, commits, folders, and steps by whatever convention."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.errors import IntegrityError, NotOnHub, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps, pin_dataset, resolve
from hubmerge.hub.step_names import list_refs
from hubmerge.refs import ModelRef, Revision, parse_ref
from tests.hub.proxy import Proxy, say


def commit(api: HfApi, repo: str, **files: str) -> str:
    """Commit files to main; `__` in a name stands for a slash, `_` for a dash."""
    operations = [
        CommitOperationAdd(name.replace("__", "/").replace("_", "-"), text.encode())
        for name, text in files.items()
    ]
    return str(api.create_commit(repo, operations, commit_message="files").oid)


def branch(api: HfApi, repo: str, *names: str) -> dict[str, str]:
    """A branch per name, each at a commit of its own."""
    shas = {}
    for name in names:
        shas[name] = commit(api, repo, step=name)
        api.create_branch(repo, branch=name, revision=shas[name])
    return shas


def refs_of(tags: list[dict[str, str]]) -> bytes:
    """What a Hub says that has just these tags."""
    return json.dumps({"branches": [], "tags": tags, "converts": []}).encode()


def found(revisions: tuple[Revision, ...]) -> list[tuple[int | None, str | None, str]]:
    return [(one.step, one.ref.revision or one.ref.subfolder, one.found) for one in revisions]


def test_a_tag_a_branch_and_a_commit(hub: Hub, repo: str, api: HfApi) -> None:
    sha = commit(api, repo, a="a")
    api.create_tag(repo, tag="step4", revision=sha)
    now = commit(api, repo, a="b")
    tagged = resolve(hub, parse_ref(f"{repo}@step4"))
    assert (tagged.sha, tagged.step, tagged.found) == (sha, 4, "tag")
    main = resolve(hub, parse_ref(repo))
    assert (main.sha, main.step, main.found) == (now, None, "branch")
    for text in (sha, sha[:12]):  # a label ends with 12 digits
        pinned = resolve(hub, parse_ref(f"{repo}@{text}"))
        assert (pinned.sha, pinned.found) == (sha, "commit")


@pytest.mark.parametrize(
    ("name", "asked"),
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
def test_a_step_is_found_however_it_is_written(
    hub: Hub, repo: str, api: HfApi, name: str, asked: str
) -> None:
    shas = branch(api, repo, name, "step7")
    revision = resolve(hub, parse_ref(f"{repo}@{asked}"))
    assert (revision.sha, revision.ref.revision, revision.found) == (shas[name], name, "branch")
    assert revision.label == f"{repo}@{name}"


def test_the_plain_name_is_meant(hub: Hub, repo: str, api: HfApi) -> None:
    shas = branch(api, repo, "extension_step0001220", "step0001220")
    assert resolve(hub, parse_ref(f"{repo}@step1220")).sha == shas["step0001220"]
    assert (
        resolve(hub, parse_ref(f"{repo}@extension_step0001220")).sha
        == (shas["extension_step0001220"])
    )


def test_a_step_in_two_stages_is_asked_for(hub: Hub, repo: str, api: HfApi) -> None:
    shas = branch(api, repo, "stage1-step1000", "stage2-step1000", "stage1-step2000")
    with pytest.raises(UsageError, match="step 1000 in several places") as caught:
        resolve(hub, parse_ref(f"{repo}@step1000"))
    assert f"{repo}@stage1-step1000 or {repo}@stage2-step1000" in caught.value.hint
    assert resolve(hub, parse_ref(f"{repo}@step2000")).sha == shas["stage1-step2000"]
    assert [step for step, *_ in found(list_steps(hub, repo))] == [1000, 1000, 2000]


def test_a_tag_hides_no_branch_of_another_stage(hub: Hub, repo: str, api: HfApi) -> None:
    shas = branch(api, repo, "stage2-step1000", "stage2-step2000", "stage1-step2000-tokens9B")
    for name in ("stage1-step1000", "stage1-step2000-tokens5B"):
        api.create_tag(repo, tag=name, revision=shas["stage2-step2000"])
    assert found(list_steps(hub, repo)) == [
        (1000, "stage1-step1000", "tag"),
        (1000, "stage2-step1000", "branch"),
        (2000, "stage1-step2000-tokens5B", "tag"),
        (2000, "stage2-step2000", "branch"),
    ]
    with pytest.raises(UsageError, match="in several places"):
        resolve(hub, parse_ref(f"{repo}@step1000"))


def test_steps_rise_and_a_tag_counts_before_a_branch_before_a_folder(
    hub: Hub, repo: str, api: HfApi
) -> None:
    main = commit(
        api, repo, checkpoint_2__config="2", checkpoint_16__config="16", checkpoint_4__config="4"
    )
    branch(api, repo, "step4", "step8")
    api.create_tag(repo, tag="step8", revision=main)
    api.create_tag(repo, tag="best", revision=main)
    assert found(list_steps(hub, repo)) == [
        (2, "checkpoint-2", "folder"),
        (4, "step4", "branch"),
        (8, "step8", "tag"),
        (16, "checkpoint-16", "folder"),
    ]


def test_a_checkpoint_folder(hub: Hub, repo: str, api: HfApi) -> None:
    sha = commit(api, repo, checkpoint_8__config="8")
    for asked in ("checkpoint-8", "step8"):
        revision = resolve(hub, parse_ref(f"{repo}@{asked}"))
        assert (revision.sha, revision.step, revision.found) == (sha, 8, "folder")
        assert revision.ref == ModelRef(repo, subfolder="checkpoint-8")
    api.create_tag(repo, tag="step8", revision=sha)
    assert resolve(hub, parse_ref(f"{repo}@checkpoint-8")).ref.subfolder == "checkpoint-8"
    assert resolve(hub, parse_ref(f"{repo}@step8")).ref.subfolder is None
    inner = resolve(hub, parse_ref(f"hf://{repo}@step0008/adapter"))
    assert (inner.ref.revision, inner.ref.subfolder) == ("step8", "adapter")


def test_a_file_is_no_checkpoint_folder(hub: Hub, repo: str, api: HfApi) -> None:
    commit(api, repo, checkpoint_8="a file", last_checkpoint__config="x")
    assert list_steps(hub, repo) == ()


def test_what_is_not_there_says_what_is(hub: Hub, repo: str, api: HfApi) -> None:
    with pytest.raises(NotOnHub, match="no revision 'step3'") as caught:
        resolve(hub, parse_ref(f"{repo}@step3"))
    assert "no step revisions at all" in caught.value.hint
    branch(api, repo, "step2", "step-004")
    for asked in ("step3", "nightly", "deadbeef", "f" * 40):
        with pytest.raises(NotOnHub, match=f"no revision '{asked}'") as caught:
            resolve(hub, parse_ref(f"{repo}@{asked}"))
        assert caught.value.hint == f"It has the steps 2, 4: write {repo}@step-004."


def test_a_long_list_of_steps_is_told_in_part(hub: Hub, repo: str, proxy: Proxy) -> None:
    names = [{"name": f"step{n}", "ref": "", "targetCommit": "a" * 40} for n in range(1000)]
    proxy.fail(
        "GET .*/refs", say(json.dumps({"branches": [], "tags": names, "converts": []}).encode())
    )
    with pytest.raises(NotOnHub) as caught:
        resolve(hub, parse_ref(f"{repo}@nightly"))
    assert "8, 9, ..., 999: write" in caught.value.hint


def test_no_such_repository(hub: Hub) -> None:
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
def test_hostile_refs_are_as_good_as_not_there(
    hub: Hub, repo: str, proxy: Proxy, name: str, sha: str
) -> None:
    told = {
        "branches": [],
        "tags": [{"name": name, "ref": "", "targetCommit": sha}],
        "converts": [],
    }
    proxy.fail("GET .*/refs", say(json.dumps(told).encode()), times=2)
    assert list_refs(hub, repo).tags == {}
    assert list_steps(hub, repo) == ()


def test_hostile_folders_are_as_good_as_not_there(hub: Hub, repo: str, proxy: Proxy) -> None:
    told = [{"type": "directory", "path": "checkpoint-/../../checkpoint-8", "oid": "a" * 40}]
    proxy.fail("GET .*/tree/", say(json.dumps(told).encode()))
    assert list_steps(hub, repo) == ()


def test_a_data_set_is_pinned(hub: Hub, repo: str, api: HfApi, proxy: Proxy) -> None:
    api.create_repo(repo, repo_type="dataset")
    sha = pin_dataset(hub, repo, "main")
    assert api.dataset_info(repo).sha == sha
    proxy.fail("GET .*/api/datasets", say(json.dumps({"id": repo, "sha": "../.."}).encode()))
    with pytest.raises(IntegrityError, match="names no commit"):
        pin_dataset(hub, repo, "main")
