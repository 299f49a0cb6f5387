"""Weights by folder or by hub id."""

import pytest

from mllm_jax.interop.hub import local_folder


def test_a_folder_is_itself(tmp_path):
    assert local_folder(str(tmp_path)) == tmp_path


def test_a_hub_id_is_found_in_the_hub_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    reference = tmp_path / "models--owner--name" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    assert local_folder("owner/name") == snapshot


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a hub id such as owner/name"):
        local_folder(str(tmp_path / "nowhere"))
