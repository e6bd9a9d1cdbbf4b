"""The answers to requests that fail."""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from model import InputError
from utils.service.guard import refuse, retry_after
from utils.service.library import CannotSearch, CannotWrite
from utils.service.queue import Busy

NOT_FOUND = "There is nothing at this address. /docs lists what there is."
CANNOT_SEARCH = "The index cannot be searched at the moment. The log of the service says why."


def add_handlers(app: FastAPI) -> None:
    """Answers each kind of error with a sentence."""
    app.add_exception_handler(InputError, _input_error)
    app.add_exception_handler(Busy, _busy)
    app.add_exception_handler(CannotSearch, _cannot_search)
    app.add_exception_handler(CannotWrite, _cannot_write)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_parameters)
    app.add_exception_handler(Exception, _failure)


def _input_error(_: Request, error: Exception) -> JSONResponse:
    return refuse(400, str(error))


def _busy(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Busy)
    return refuse(503, str(error), headers=retry_after(error.retry_after))


def _cannot_search(_: Request, error: Exception) -> JSONResponse:
    return refuse(503, CANNOT_SEARCH, headers=retry_after(1))


def _cannot_write(_: Request, error: Exception) -> JSONResponse:
    sentence = "The index could not be written, and is as before. The log of the service says why."
    return refuse(503, sentence, headers=retry_after(1))


def _http_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    sentence = NOT_FOUND if error.detail == "Not Found" else error.detail  # the framework's own words
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


def _wrong_parameters(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = (f"{problem['loc'][-1]} is {problem.get('input')!r}: {problem['msg']}." for problem in error.errors())
    return refuse(400, " ".join(found))


def _failure(_: Request, error: Exception) -> JSONResponse:
    return refuse(500, "The service failed. Its log says why.")
