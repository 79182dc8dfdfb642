"""IAM, which this broker hasn't: its calls are refused by name, and no method of it is one by mistake."""

from __future__ import annotations

from shardctl.broker.errors import UnimplementedError

IAM = "google.iam.v1.IAMPolicy"


def refusal(name: str) -> UnimplementedError:
    return UnimplementedError(
        f"{name} is not implemented. This broker has no IAM: every caller may do everything. "
        "Leave the call out, or use Pub/Sub itself."
    )
