"""Errors that know a reason and facts, and nothing of how they travel (see wire.py)."""

from enum import IntEnum, StrEnum


class Code(IntEnum):
    """The codes of gRPC, by number, so that rules need not import it."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(StrEnum):
    """Why something failed; the names of retinue.common.v1.ErrorReason."""

    FIELD_INVALID = "FIELD_INVALID"
    CURSOR_INVALID = "CURSOR_INVALID"
    CREDENTIAL_MISSING = "CREDENTIAL_MISSING"
    CREDENTIAL_INVALID = "CREDENTIAL_INVALID"
    CREDENTIAL_EXPIRED = "CREDENTIAL_EXPIRED"
    SCOPE_MISSING = "SCOPE_MISSING"
    POLICY_DENIED = "POLICY_DENIED"
    TENANT_MISMATCH = "TENANT_MISMATCH"
    TENANT_NOT_FOUND = "TENANT_NOT_FOUND"
    CONTACT_NOT_FOUND = "CONTACT_NOT_FOUND"
    RUN_NOT_FOUND = "RUN_NOT_FOUND"
    APPROVAL_NOT_FOUND = "APPROVAL_NOT_FOUND"
    ROUTE_NOT_FOUND = "ROUTE_NOT_FOUND"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    RUN_TERMINAL = "RUN_TERMINAL"
    APPROVAL_CLOSED = "APPROVAL_CLOSED"
    TOOL_TRANSACTION_OPEN = "TOOL_TRANSACTION_OPEN"
    CAPABILITY_MISSING = "CAPABILITY_MISSING"
    STALE_FENCING_TOKEN = "STALE_FENCING_TOKEN"
    SESSION_BUSY = "SESSION_BUSY"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    SLOW_CONSUMER = "SLOW_CONSUMER"
    DRAINING = "DRAINING"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    RUNTIME_UNAVAILABLE = "RUNTIME_UNAVAILABLE"
    MODEL_CONTEXT_OVERFLOW = "MODEL_CONTEXT_OVERFLOW"
    MODEL_ROLE_ORDER = "MODEL_ROLE_ORDER"
    MODEL_AUTH = "MODEL_AUTH"
    MODEL_RATE_LIMITED = "MODEL_RATE_LIMITED"
    MODEL_QUOTA = "MODEL_QUOTA"
    MODEL_TIMEOUT = "MODEL_TIMEOUT"
    MODEL_UNAVAILABLE = "MODEL_UNAVAILABLE"
    MODEL_RESPONSE_INVALID = "MODEL_RESPONSE_INVALID"
    MODEL_REQUEST_REFUSED = "MODEL_REQUEST_REFUSED"
    ATTEMPTS_EXHAUSTED = "ATTEMPTS_EXHAUSTED"
    OUTPUT_TOO_LARGE = "OUTPUT_TOO_LARGE"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    INTERNAL = "INTERNAL"
    SCHEDULE_NOT_FOUND = "SCHEDULE_NOT_FOUND"
    WEBHOOK_NOT_FOUND = "WEBHOOK_NOT_FOUND"
    DELIVERY_NOT_FOUND = "DELIVERY_NOT_FOUND"
    DEAD_LETTER_NOT_FOUND = "DEAD_LETTER_NOT_FOUND"
    INSTANCE_NOT_FOUND = "INSTANCE_NOT_FOUND"
    DEAD_LETTER_CLOSED = "DEAD_LETTER_CLOSED"
    QUEUE_FULL = "QUEUE_FULL"
    SANDBOX_UNAVAILABLE = "SANDBOX_UNAVAILABLE"
    FILE_NOT_FOUND = "FILE_NOT_FOUND"
    FILE_CHANGED = "FILE_CHANGED"
    EDIT_MISMATCH = "EDIT_MISMATCH"
    ALLOWANCE_NOT_FOUND = "ALLOWANCE_NOT_FOUND"
    BUNDLE_INVALID = "BUNDLE_INVALID"
    FACT_NOT_FOUND = "FACT_NOT_FOUND"
    DECISION_NOT_FOUND = "DECISION_NOT_FOUND"


CODES: dict[Reason, Code] = {
    Reason.FIELD_INVALID: Code.INVALID_ARGUMENT,
    Reason.CURSOR_INVALID: Code.INVALID_ARGUMENT,
    Reason.CREDENTIAL_MISSING: Code.UNAUTHENTICATED,
    Reason.CREDENTIAL_INVALID: Code.UNAUTHENTICATED,
    Reason.CREDENTIAL_EXPIRED: Code.UNAUTHENTICATED,
    Reason.SCOPE_MISSING: Code.PERMISSION_DENIED,
    Reason.POLICY_DENIED: Code.PERMISSION_DENIED,
    Reason.TENANT_MISMATCH: Code.PERMISSION_DENIED,
    Reason.TENANT_NOT_FOUND: Code.NOT_FOUND,
    Reason.CONTACT_NOT_FOUND: Code.NOT_FOUND,
    Reason.RUN_NOT_FOUND: Code.NOT_FOUND,
    Reason.APPROVAL_NOT_FOUND: Code.NOT_FOUND,
    Reason.ROUTE_NOT_FOUND: Code.NOT_FOUND,
    Reason.IDEMPOTENCY_KEY_REUSED: Code.ALREADY_EXISTS,
    Reason.RUN_TERMINAL: Code.FAILED_PRECONDITION,
    Reason.APPROVAL_CLOSED: Code.FAILED_PRECONDITION,
    Reason.TOOL_TRANSACTION_OPEN: Code.FAILED_PRECONDITION,
    Reason.CAPABILITY_MISSING: Code.FAILED_PRECONDITION,
    Reason.STALE_FENCING_TOKEN: Code.ABORTED,
    Reason.SESSION_BUSY: Code.ABORTED,
    Reason.QUOTA_EXCEEDED: Code.RESOURCE_EXHAUSTED,
    Reason.BODY_TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    Reason.SLOW_CONSUMER: Code.RESOURCE_EXHAUSTED,
    Reason.DRAINING: Code.UNAVAILABLE,
    Reason.DEPENDENCY_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.RUNTIME_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.MODEL_CONTEXT_OVERFLOW: Code.FAILED_PRECONDITION,
    Reason.MODEL_ROLE_ORDER: Code.FAILED_PRECONDITION,
    Reason.MODEL_AUTH: Code.FAILED_PRECONDITION,
    Reason.MODEL_RATE_LIMITED: Code.UNAVAILABLE,
    Reason.MODEL_QUOTA: Code.RESOURCE_EXHAUSTED,
    Reason.MODEL_TIMEOUT: Code.DEADLINE_EXCEEDED,
    Reason.MODEL_UNAVAILABLE: Code.UNAVAILABLE,
    Reason.MODEL_RESPONSE_INVALID: Code.UNAVAILABLE,
    Reason.MODEL_REQUEST_REFUSED: Code.FAILED_PRECONDITION,
    Reason.ATTEMPTS_EXHAUSTED: Code.UNAVAILABLE,
    Reason.OUTPUT_TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    Reason.RUN_TIMEOUT: Code.DEADLINE_EXCEEDED,
    Reason.INTERNAL: Code.INTERNAL,
    Reason.SCHEDULE_NOT_FOUND: Code.NOT_FOUND,
    Reason.WEBHOOK_NOT_FOUND: Code.NOT_FOUND,
    Reason.DELIVERY_NOT_FOUND: Code.NOT_FOUND,
    Reason.DEAD_LETTER_NOT_FOUND: Code.NOT_FOUND,
    Reason.INSTANCE_NOT_FOUND: Code.NOT_FOUND,
    Reason.DEAD_LETTER_CLOSED: Code.FAILED_PRECONDITION,
    Reason.QUEUE_FULL: Code.UNAVAILABLE,
    Reason.SANDBOX_UNAVAILABLE: Code.FAILED_PRECONDITION,
    Reason.FILE_NOT_FOUND: Code.NOT_FOUND,
    Reason.FILE_CHANGED: Code.ABORTED,
    Reason.EDIT_MISMATCH: Code.FAILED_PRECONDITION,
    Reason.ALLOWANCE_NOT_FOUND: Code.NOT_FOUND,
    Reason.BUNDLE_INVALID: Code.INVALID_ARGUMENT,
    Reason.FACT_NOT_FOUND: Code.NOT_FOUND,
    Reason.DECISION_NOT_FOUND: Code.NOT_FOUND,
}
"""One code for each reason, so that whoever knows the reason knows the code."""

RETRY_AFTER_S = 1.0
"""Seconds a caller is asked to wait before it repeats, where nothing better is known: about as long as a process of the
mesh takes to come back."""


class RetinueError(Exception):
    """A failure with a reason that callers can act on.

    `message` is for the caller and holds no secret, no SQL and no other tenant's name; `private` is for the log alone.
    `metadata` are facts as text. `retry_after_s` is set where repeating makes sense.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        private: str = "",
        retry_after_s: float | None = None,
        code: Code | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.private = private
        self.retry_after_s = retry_after_s
        self.code = code or CODES[reason]
        self.metadata = metadata

    @classmethod
    def unavailable(cls, dependency: str, private: str = "") -> "RetinueError":
        """Say that a service or store does not answer for the moment."""
        return cls(
            Reason.DEPENDENCY_UNAVAILABLE,
            f"{dependency} does not answer at the moment; try again.",
            private=private,
            retry_after_s=RETRY_AFTER_S,
            dependency=dependency,
        )

    @classmethod
    def field(cls, field: str, problem: str) -> "RetinueError":
        """Refuse a field of a request, with the problem as "must be …"."""
        return cls(Reason.FIELD_INVALID, f"{field}: {problem}", field=field)
