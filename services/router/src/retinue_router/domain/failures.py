"""What becomes of a run that has failed for good: whether it is set aside for an operator, by its reason."""

from retinue_kit.errors import Reason

SET_ASIDE: dict[Reason, str] = {
    Reason.ATTEMPTS_EXHAUSTED: "Each attempt died with its process.",
    Reason.INTERNAL: "A bug of ours; once it is mended the run can go through.",
    Reason.DEPENDENCY_UNAVAILABLE: "A part of the mesh was away for longer than its attempts lasted.",
    Reason.DRAINING: "Processes were stopping for longer than its attempts lasted.",
    Reason.RUNTIME_UNAVAILABLE: "The runtime failed for as long as a run may wait.",
    Reason.MODEL_UNAVAILABLE: "The model was away for longer than its attempts lasted.",
    Reason.MODEL_TIMEOUT: "The model was silent in each attempt.",
    Reason.MODEL_RESPONSE_INVALID: "The model's answers broke off in each attempt.",
    Reason.MODEL_RATE_LIMITED: "The provider's limit lasted longer than its attempts.",
    Reason.MODEL_AUTH: "The operator mends the credential.",
    Reason.MODEL_QUOTA: "The operator pays the bill.",
}
"""Reasons that are not the run's own doing: asked again later, it may well succeed."""

KEPT: dict[Reason, str] = {
    **dict.fromkeys(
        (Reason.FIELD_INVALID, Reason.CURSOR_INVALID, Reason.BODY_TOO_LARGE, Reason.BUNDLE_INVALID),
        "The request itself is not well made.",
    ),
    **dict.fromkeys(
        (Reason.MODEL_CONTEXT_OVERFLOW, Reason.MODEL_ROLE_ORDER, Reason.MODEL_REQUEST_REFUSED),
        "The model would refuse the same request again.",
    ),
    **dict.fromkeys(
        (Reason.OUTPUT_TOO_LARGE, Reason.RUN_TIMEOUT), "It used up what a run may; so would the same request again."
    ),
    **dict.fromkeys(
        (
            Reason.CREDENTIAL_MISSING,
            Reason.CREDENTIAL_INVALID,
            Reason.CREDENTIAL_EXPIRED,
            Reason.SCOPE_MISSING,
            Reason.POLICY_DENIED,
            Reason.TENANT_MISMATCH,
        ),
        "It may not do this.",
    ),
    **dict.fromkeys(
        (
            Reason.TENANT_NOT_FOUND,
            Reason.CONTACT_NOT_FOUND,
            Reason.RUN_NOT_FOUND,
            Reason.APPROVAL_NOT_FOUND,
            Reason.ROUTE_NOT_FOUND,
            Reason.SCHEDULE_NOT_FOUND,
            Reason.WEBHOOK_NOT_FOUND,
            Reason.DELIVERY_NOT_FOUND,
            Reason.DEAD_LETTER_NOT_FOUND,
            Reason.INSTANCE_NOT_FOUND,
            Reason.FILE_NOT_FOUND,
            Reason.ALLOWANCE_NOT_FOUND,
            Reason.FACT_NOT_FOUND,
            Reason.DECISION_NOT_FOUND,
        ),
        "What it is about is not there.",
    ),
    **dict.fromkeys(
        (
            Reason.IDEMPOTENCY_KEY_REUSED,
            Reason.RUN_TERMINAL,
            Reason.APPROVAL_CLOSED,
            Reason.DEAD_LETTER_CLOSED,
            Reason.TOOL_TRANSACTION_OPEN,
            Reason.CAPABILITY_MISSING,
            Reason.SESSION_BUSY,
            Reason.SANDBOX_UNAVAILABLE,
            Reason.FILE_CHANGED,
            Reason.EDIT_MISMATCH,
        ),
        "The state of things forbids what was asked; whoever asked sees why.",
    ),
    **dict.fromkeys(
        (Reason.QUOTA_EXCEEDED, Reason.QUEUE_FULL, Reason.SLOW_CONSUMER), "Callers are told that; no run ends with it."
    ),
    Reason.STALE_FENCING_TOKEN: "Another attempt goes on with the run.",
}
"""Reasons that a run fails with for good: its client knows all there is to know."""


def is_set_aside(reason: Reason | None) -> bool:
    """Whether a run that failed for this reason is a dead letter; one without a reason of ours is."""
    return reason is None or reason in SET_ASIDE
