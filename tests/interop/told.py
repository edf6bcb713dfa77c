"""How the tests talk with these programs: JSON lines on stdin and stdout, so that no secret is an argument.

`{"do": NAME, …}` is answered with `{"answer": VALUE}` or `{"raised": [CLASS, …], "texts": [TEXT, …]}`: the exception
and its causes. What happens by itself is told as `{"event": NAME, "value": VALUE}`. stderr is for people.
"""

import json
import sys
import threading

_line = threading.Lock()


def tell(**words):
    """Writes one line."""
    with _line:
        sys.stdout.write(json.dumps(words) + "\n")
        sys.stdout.flush()


def happened(name, value=None):
    """Tells of something that nobody asked for."""
    tell(event=name, value=value)


def _with_causes(error):
    while error is not None:
        yield error
        error = error.__cause__


def obey(commands, describe=lambda error: {}):
    """Does what each line of stdin asks for, one after the other, until stdin ends."""
    for line in sys.stdin:
        words = json.loads(line)
        command = commands[words.pop("do")]
        try:
            answer = command(**words)
        except Exception as error:
            chain = list(_with_causes(error))
            classes = [type(error).__name__ for error in chain]
            tell(raised=classes, texts=[str(error) for error in chain], **describe(error))
        else:
            tell(answer=answer)
