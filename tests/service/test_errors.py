import inspect

from service import errors
from service.errors import InternalError, Overloaded, ViolaError


def error_classes() -> list[type[ViolaError]]:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    return [value for value in classes if issubclass(value, ViolaError) and value is not ViolaError]


def test_the_tree_in_the_docstring_shows_every_error_with_its_code_and_status() -> None:
    lines = {line.split()[1]: line.split()[2:4] for line in errors.__doc__.splitlines() if "──" in line}
    assert lines == {error.__name__: [error.code, str(error.status)] for error in error_classes()}


def test_codes_are_unique() -> None:
    codes = [error.code for error in error_classes()]
    assert len(set(codes)) == len(codes)


def test_an_error_says_its_sentence() -> None:
    assert str(InternalError("the model failed")) == "the model failed"


def test_an_overloaded_server_says_when_to_come_back() -> None:
    assert Overloaded("the queue is full", retry_after_s=2.5).retry_after_s == 2.5
