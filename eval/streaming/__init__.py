"""Answers that are read while they are written (see `engine`)."""

from eval.streaming.answering import Answering, Request
from eval.streaming.engine import QueueFull, StreamingEngine, check_system

__all__ = ["Answering", "QueueFull", "Request", "StreamingEngine", "check_system"]
