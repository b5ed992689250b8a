"""The composition root: makes every service and hands each what it needs."""

from keibi.manager.services import Services

__all__ = ["Services"]
