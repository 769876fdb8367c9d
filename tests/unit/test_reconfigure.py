"""`user_config`: settings that may change while the service runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rm_core import ModelLoadError
from serve.config.reconfigure import RECONFIGURABLE_FIELDS, ReplicaUserConfig, apply_user_config
from serve.config.settings import Settings


def test_omitted_settings_keep_their_values(tmp_path: Path) -> None:
    before = Settings.load(port=9000, api_keys=["first"], max_messages=7, max_requests=5)
    after = apply_user_config(before, {"max_messages": 9, "api_keys_file": str(tmp_path / "keys")})
    assert (after.max_messages, after.api_keys_file) == (9, str(tmp_path / "keys"))
    assert (after.port, after.max_requests, after.models) == (9000, 5, before.models)
    assert [key.get_secret_value() for key in after.api_keys] == ["first"]
    assert apply_user_config(before, {}) == before


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        ({"port": 1}, "'port', which cannot be changed"),
        ({"max_mesages": 1}, "'max_mesages'"),
        ({"api_keys": ["x"]}, "'api_keys'"),
        ({"max_request_tokens": 1}, "'max_request_tokens', which was removed: the limit is"),
        ({"max_messages": 0}, "max_messages: "),
    ],
)
def test_unknown_names_and_bad_values_are_refused(
    user_config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        apply_user_config(Settings.load(), user_config)


def test_reconfigurable_fields_are_settings() -> None:
    assert set(RECONFIGURABLE_FIELDS) <= set(Settings.model_fields)
    assert list(RECONFIGURABLE_FIELDS) == sorted(RECONFIGURABLE_FIELDS)


def test_replica_accepts_log_level_and_stuck_after_s() -> None:
    changes = ReplicaUserConfig.from_user_config({"stuck_after_s": 5, "log_level": "DEBUG"})
    assert (changes.stuck_after_s, changes.log_level) == (5, "DEBUG")
    assert ReplicaUserConfig.from_user_config({}).stuck_after_s is None
    for bad in ({"stuck_after_s": 0}, {"log_level": "LOUD"}, {"dtype": "float32"}):
        with pytest.raises(ModelLoadError, match=next(iter(bad))):
            ReplicaUserConfig.from_user_config(bad)
