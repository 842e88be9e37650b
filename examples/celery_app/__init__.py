"""A Celery application whose runs survive its workers.

    cd examples
    celery -A celery_app.tasks worker -P threads -c 8     # as many workers as you like
    python -m celery_app.shop "Weather in Rome?"          # sends a task, and waits for what comes of it

with BROKER, JOURNAL, ASSISTANT, OPENAI_BASE_URL and OPENAI_API_KEY in the environment. `python -m celery_app`
starts a server, a Redis server and two workers of its own, kills one of them, and asks.
"""
