"""Policy for tools that says what a test wants it to say."""

from retinue_kit.errors import RetinueError
from retinue_runtime_adapter.tools.ports import Call, Scope, Verdict


class FakeAuthority:
    """Allows what is not named in `verdicts`, and remembers what it was asked. With `trouble` it does not answer."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}
        self.trouble: RetinueError | None = None
        self.asked: list[tuple[Scope, Call]] = []

    async def authorize(self, scope: Scope, call: Call, *, approved: bool = False) -> Verdict:
        self.asked.append((scope, call))
        if self.trouble is not None:
            raise self.trouble
        return self.verdicts.get(call.tool, Verdict("allow"))
