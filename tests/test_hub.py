"""Names of the Hub: told apart from paths, and each way that one cannot be brought told by its own exit code."""

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from utils import hub
from utils.errors import ArgumentFault, EnvironmentFault, ModelFault

RESPONSE = httpx.Response(404, request=httpx.Request("GET", "http://127.0.0.1/api"))


@pytest.mark.parametrize(
    ("error", "fault", "message"),
    [
        (
            RepositoryNotFoundError("404 Client Error.\nmore", response=RESPONSE),
            ArgumentFault,
            "--base_model: outptu/base is neither a folder here nor a model of the Hub: 404 Client Error.",
        ),
        (HfHubHTTPError("500 Server Error", response=RESPONSE), ModelFault, "--base_model: outptu/base: 500 Server"),
        (
            OfflineModeIsEnabled("offline"),
            EnvironmentFault,
            "--base_model: outptu/base is no folder here, and the Hub cannot be reached",
        ),
    ],
)
def test_a_name_that_cannot_be_brought(error, fault, message, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(fault) as caught:
        hub.local_folder("outptu/base", "base_model")
    assert str(caught.value).startswith(message)


def test_a_name_in_a_folder_that_is_here_is_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert hub.is_hub_name("output/run-1")
    (tmp_path / "output").mkdir()
    assert not hub.is_hub_name("output/run-1")
    with pytest.raises(ArgumentFault, match="--base_model: output/run-1 does not exist"):
        hub.local_folder("output/run-1", "base_model")
