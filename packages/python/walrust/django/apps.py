"""The app's beginning."""

from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.backends.signals import connection_created

import walrust


class WalrustConfig(AppConfig):
    """Loads walrust, and has the databases of the WALRUST setting watched as they are opened."""

    name = "walrust.django"
    label = "walrust"
    verbose_name = "walrust"

    def ready(self) -> None:
        walrust.load()
        for alias in configured():
            if alias not in settings.DATABASES:
                raise ImproperlyConfigured(
                    f"WALRUST names the database {alias!r}, which is not in DATABASES; allowed: {', '.join(settings.DATABASES)}"
                )
        connection_created.connect(begin, dispatch_uid="walrust")


def configured() -> Any:
    return getattr(settings, "WALRUST", {})


def begin(connection: Any, **_: Any) -> None:
    """A connection of Django's is open: its database is watched, if the settings say so."""
    options = dict(configured().get(connection.alias, {}))
    if connection.vendor == "sqlite" and options and not connection.is_in_memory_db():
        walrust.watch(connection.connection, options.pop("replica", None), **options)
