"""Every test that asks for a ``case`` runs with every loss; add one of your own with ``--loss``.

pytest tests/losses --loss=package.module.Class
"""

import pytest

from crossent.errors import UserError
from losses.references import cases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--loss",
        action="append",
        default=[],
        metavar="package.module.Class",
        help="a loss of your own, made without arguments, to be tested like ours (repeatable; with tests/losses only)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = set(metafunc.fixturenames)
    if "case" not in names:
        return
    try:
        found = cases(metafunc.config.getoption("loss", []))
    except UserError as error:
        raise pytest.UsageError(str(error)) from error
    if metafunc.definition.get_closest_marker("symmetric"):
        found = [case for case in found if case.symmetric]
    if metafunc.definition.get_closest_marker("chunked"):
        found = [case for case in found if "chunked" in case.loss.backends]
    if "backend" in names:
        pairs = [(case, backend) for case in found for backend in case.loss.backends]
        ids = [f"{case.name}-{backend}" for case, backend in pairs]
        metafunc.parametrize(("case", "backend"), pairs, ids=ids)
    else:
        metafunc.parametrize("case", found, ids=[case.name for case in found])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "symmetric: for losses of differences of logits that treat all classes alike")
    config.addinivalue_line("markers", "chunked: for losses that need no more than a slice of rows at a time")
