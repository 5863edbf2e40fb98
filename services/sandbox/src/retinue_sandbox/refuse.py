"""The backend of a deployment without boxes: nothing is executed."""

from retinue_kit.errors import Reason, RetinueError

from retinue_sandbox.ports import Box, Check, Isolation, Profile, Workspace


class RefuseBackend:
    """Implements ports.Backend by refusing, with the look of the self-test that says why."""

    name = "refuse"
    isolation: Isolation | None = None

    def __init__(self, problem: Check) -> None:
        """`problem` is a required check that does not hold."""
        self._problem = problem

    async def check(self) -> list[Check]:
        """Say what stands in the way."""
        return [self._problem]

    async def open(self, workspace: Workspace, profile: Profile) -> Box:
        """Refuse."""
        raise NoBoxError(self._problem)

    async def held_bytes(self, tenant_id: str) -> int:
        """Nothing is open."""
        return 0

    async def close(self) -> None:
        """Nothing is open."""


class NoBoxError(RetinueError):
    """There is no box. Callers hear of which look; what it saw, and how to mend it, may name what is the machine's."""

    def __init__(self, problem: Check, private: str = "") -> None:
        super().__init__(
            Reason.SANDBOX_UNAVAILABLE,
            f"There is no box ({problem.name}), and nothing is executed outside of one.",
            private=f"{problem.detail}; {private or problem.remedy}",
            check=problem.name,
        )
        self.problem = problem
