"""The parameters of a prediction, from the query and the body."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request

from eagleray.core.errors import InputError, UserError
from eagleray.core.validation import first_validation_error
from eagleray.serving.protocol.json_body import read_json
from eagleray.tasks import Task
from eagleray.tasks.limits import CountLimit, require_limits

__all__ = [
    "ParameterError",
    "PredictParameters",
    "QueryParameters",
    "describe_fault",
    "limits_for",
    "read_json_body",
    "read_parameters",
]


Body = TypeVar("Body", bound=BaseModel)


class ParameterError(InputError):
    """A parameter of the query or the body is invalid."""

    http_status = 422


def read_json_body(content: bytes, model: type[Body]) -> Body:
    """Parse a body of JSON.

    Args:
        content: The body.
        model: What it describes.

    Raises:
        InputError: If it is not JSON.
        ParameterError: If a field is invalid.
    """
    try:
        return model.model_validate(read_json(content))
    except ValidationError as error:
        raise ParameterError(f"JSON body: {first_validation_error(error)}.") from None


def _each_limit(text: str) -> str:
    for part in text.split(","):
        CountLimit.parse(part)
    return text


class PredictParameters(BaseModel):
    """The parameters of a prediction besides its images."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    top_k: int = Field(default=5, ge=1, le=1000, description="Maximum number of labels listed.")
    threshold: float | None = Field(
        default=None, ge=0, le=1, description="Minimum probability of a label that is listed."
    )
    version: str | None = Field(
        default=None, min_length=1, max_length=64, description="A version number, or an alias."
    )
    limit: Annotated[str, AfterValidator(_each_limit)] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Numbers of objects that are to be noticed, such as `person>10,helmet<1`; "
        "`exceeds` lists those that an image exceeds.",
    )
    timeout_ms: float | None = Field(
        default=None, gt=0, le=600_000, description="Time limit of the request, in milliseconds."
    )
    explain: bool = Field(
        default=False,
        description="Explain the prediction of the only image by a heat map over it. A replica "
        "makes one explanation at a time.",
    )


def limits_for(parameters: PredictParameters, task: Task) -> tuple[CountLimit, ...]:
    """Return the limits of a request.

    Raises:
        ParameterError: If they have another form, or do not fit the model.
    """
    if parameters.limit is None:
        return ()
    try:
        return require_limits(parameters.limit.split(","), task, where="limit")
    except UserError as error:
        raise ParameterError(str(error)) from None


class QueryParameters(PredictParameters):
    """The parameters that the query may have."""

    attributes: str | None = Field(
        default=None,
        description="Attributes of the image as JSON, for models that take attributes; a list for "
        "several images. A multipart form has them as a field.",
    )


def read_parameters(request: Request, from_body: dict[str, Any]) -> PredictParameters:
    """Read the parameters from the query and the body, which takes precedence.

    Raises:
        ParameterError: If a parameter is invalid; the message names it.
    """
    names = [name for name, _ in request.query_params.multi_items()]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ParameterError(f"Parameter {twice} is in the query more than once.")
    try:
        return QueryParameters.model_validate_strings(
            {
                **dict(request.query_params),
                **{name: str(value) for name, value in from_body.items() if value is not None},
            }
        )
    except ValidationError as error:
        raise ParameterError(f"Parameter {describe_fault(error, QueryParameters)}.") from None


def describe_fault(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe the first invalid field to a caller; for an unknown name, list the known ones."""
    fault = error.errors()[0]
    if fault["type"] == "extra_forbidden" and len(fault["loc"]) == 1:
        return f"{fault['loc'][0]} is not known; there are {', '.join(model.model_fields)}"
    return first_validation_error(error).replace("a valid dictionary", "an object")
