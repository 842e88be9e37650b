"""The application: what the workers load, and who sends them tasks."""

import os

from celery import Celery
from weather import get_weather

from orchestrator import Orchestrator
from orchestrator.journal import SQLJournal
from orchestrator.workers.celery import install

app = Celery("celery_app", broker=os.environ["BROKER"], backend=os.environ["BROKER"])
app.conf.update(
    # A worker keeps no messages back that others could get.
    worker_prefetch_multiplier=1,
    # Redis sends a dead worker's messages again after this many seconds; a second one does a run no harm.
    broker_transport_options={"visibility_timeout": 60},
    broker_connection_retry_on_startup=True,
)


def make_orchestrator() -> Orchestrator:
    # A worker that dies is noticed after `lease_s`.
    return Orchestrator(tools=[get_weather], journal=SQLJournal(os.environ["JOURNAL"], lease_s=5.0))


install(app, make_orchestrator, drain_s=10.0)
