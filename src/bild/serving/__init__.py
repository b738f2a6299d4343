"""A pair over HTTP: the APIs of OpenAI and of LibreTranslate around one engine."""

from bild.serving.app import build_app
from bild.serving.service import Service
from bild.serving.settings import Settings

__all__ = ["Service", "Settings", "build_app"]
