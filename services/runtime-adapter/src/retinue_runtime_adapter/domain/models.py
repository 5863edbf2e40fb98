"""Models by name: aliases, the default, and who stands in for whom."""

from collections.abc import Iterable
from dataclasses import dataclass


class CatalogueError(ValueError):
    """The models contradict one another; the text names the entry."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model under the name that Retinue knows it by."""

    name: str
    provider: str
    model: str
    """What the provider calls it."""

    aliases: tuple[str, ...] = ()
    fallback: str = ""
    input_price: float = 0.0
    output_price: float = 0.0
    """Price of a million tokens read and written, in the deployment's currency; 0 if unknown."""

    window_tokens: int = 0
    """Tokens that it can read; 0 if unknown."""


class Catalogue:
    """All models. Raises CatalogueError for a name that is used twice, a missing or circular fallback, no model."""

    def __init__(self, models: Iterable[Model], default: str) -> None:
        self._by_name: dict[str, Model] = {}
        self._models = tuple(models)
        for model in self._models:
            for name in (model.name, *model.aliases):
                if name in self._by_name:
                    raise CatalogueError(f"the name {name!r} is used twice")
                self._by_name[name] = model
        if default not in self._by_name:
            raise CatalogueError(f"there is no model {default!r} to be the default")
        self.default = self._by_name[default]
        for model in self._models:
            self._check(model)

    def _check(self, model: Model) -> None:
        seen = {model.name}
        while model.fallback:
            following = self._by_name.get(model.fallback)
            if following is None:
                raise CatalogueError(f"{model.name!r} falls back to {model.fallback!r}, which does not exist")
            if following.name in seen:
                raise CatalogueError(f"{model.name!r} falls back in a circle")
            seen.add(following.name)
            model = following

    def knows(self, name: str) -> bool:
        """Whether a name or alias is that of a model."""
        return name in self._by_name

    def chain(self, name: str) -> list[Model]:
        """The model of a name and those that stand in for it, in order. A name that nobody has means the default."""
        model = self._by_name.get(name, self.default)
        models = [model]
        while model.fallback:
            model = self._by_name[model.fallback]
            models.append(model)
        return models

    def with_provider(self, name: str) -> str:
        """Write `provider/name` of the model that a name or an alias means, as rules for tools know it.

        Of the model that is asked first: one that stands in for it does not change what a run may do.
        """
        model = self.chain(name)[0]
        return f"{model.provider}/{model.name}"

    def all(self) -> list[Model]:
        """Every model, the default first."""
        return [self.default, *(model for model in self._models if model is not self.default)]

    def names(self) -> list[str]:
        """Names, the default's first."""
        return [model.name for model in self.all()]

    def windows(self) -> list[int]:
        """Tokens that each can read, in the order of `names`; 0 where that is not known."""
        return [model.window_tokens for model in self.all()]
