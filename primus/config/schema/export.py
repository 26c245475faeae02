"""What only the user knows about an exported model; the rest of its card is the run's."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from primus.config.schema.keys import Keys, key

LicenseId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")]
LanguageCode = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,12}(-[A-Za-z0-9]{1,8})*$")]


class ModelCard(Keys):
    """Keys of the card of the exported model, by Hugging Face's names."""

    license: LicenseId | None = key(
        None,
        doc="The hub's identifier of the licence, such as apache-2.0; null: the card states none.",
        extent="export",
    )
    language: list[LanguageCode] = key(
        [], doc="Languages of the training text, such as en.", extent="export"
    )
