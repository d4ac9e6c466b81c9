"""Errors of the SDK.

    SdkError
    ├── RecipeError     a recipe file cannot be read, or asks for what does not exist
    ├── DataError       samples or labels are missing, damaged, or do not fit the model
    ├── CompressError   a model cannot be trained, distilled or pruned as asked
    ├── SearchError     a search cannot be begun or resumed as asked
    ├── ExportError     a model cannot be turned into an artifact for the targets asked for
    ├── VerifyError     an artifact and its reference cannot be compared
    ├── PublishError    an artifact may not, or cannot, become a release
    ├── SideEnvironmentError  a tool with a Python environment of its own cannot be had, or failed
    └── DemoError       a step of the demo did not end as it must

A caller's own mistake (a wrong argument in code) is a ValueError.
"""


class SdkError(Exception):
    """Base of every error this package raises."""


class RecipeError(SdkError):
    """A recipe is damaged or unknown in part; the message names file, section and key."""


class DataError(SdkError):
    """Samples or labels are missing, damaged, or do not fit the model."""


class CompressError(SdkError):
    """A model cannot be trained, distilled or pruned as asked."""


class SearchError(SdkError):
    """A search cannot be begun, or resumed in this folder, as asked; or every trial of it failed."""


class ExportError(SdkError):
    """A model cannot be turned into an artifact for the targets asked for."""


class VerifyError(SdkError):
    """An artifact and its reference cannot be compared."""


class PublishError(SdkError):
    """An artifact may not, or cannot, become a release."""


class SideEnvironmentError(SdkError):
    """A tool that has a Python environment of its own cannot be installed, or failed there."""


class DemoError(SdkError):
    """A step of the demo did not end as it must."""
