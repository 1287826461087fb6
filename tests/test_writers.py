"Files are what openai-whisper would have written, byte for byte."
import io
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whisper_nb.transcript import Segment, Transcript, Word
from whisper_nb.writers import WRITERS, Layout, as_result, write_as

utils = pytest.importorskip('whisper.utils')

PIECES = ['', ' ', ' so', ' Turn', 'on', ' the\ttable', ' -->', '\n', ' two\nlines', ' 🎉', ' 日本', 'é', ' <u>', ' "', '\\', '\x00', '\u2028', ' ' * 5, ' longwordwithoutend' * 3, ' a', '\r\n']
TIMES = st.one_of(st.floats(0, 30), st.floats(3590, 3610), st.floats(0, 400_000), st.sampled_from([0.0, 0.0005, 59.9995, 3599.9995, 86_400.0]))
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=5).map(''.join), st.text(max_size=12))
MAYBE = st.one_of(st.none(), st.floats(-9, 9))


@st.composite
def transcripts(draw, words):
    now, segments = draw(TIMES), []
    for place in range(draw(st.integers(0, 5))):
        spoken = []
        for _ in range(draw(st.integers(0, 7)) if words else 0):
            start = now + draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 3.1, 10.0]))
            now = start + draw(st.sampled_from([0.0, 0.02, 0.4, 2.5]))
            spoken.append(Word(start, now, draw(TEXTS), draw(MAYBE)))
        start, now = now, now + draw(st.floats(0, 9))
        segments.append(Segment(start, now, draw(TEXTS), tuple(spoken), place, draw(st.integers(0, 10**6)), tuple(draw(st.lists(st.integers(0, 51865), max_size=3))), *[draw(MAYBE) for _ in range(4)]))
    return Transcript('', tuple(segments), draw(st.sampled_from(['en', None])), 1.0, 1.0)


LAYOUTS = st.one_of(st.just(Layout()), st.builds(Layout, highlight_words=st.booleans(), max_words_per_line=st.one_of(st.none(), st.integers(1, 9))),
    st.builds(Layout, highlight_words=st.booleans(), max_line_width=st.one_of(st.integers(1, 12), st.just(42))),
    st.builds(Layout, highlight_words=st.booleans(), max_line_width=st.one_of(st.integers(1, 12), st.just(42)), max_line_count=st.integers(1, 4)))


def theirs(transcript, format, layout):
    "What openai-whisper writes for the same result."
    file = io.StringIO()
    asked = dict(max_line_width=layout.max_line_width, max_line_count=layout.max_line_count, highlight_words=layout.highlight_words, max_words_per_line=layout.max_words_per_line)
    utils.get_writer(format, '').write_result(as_result(transcript), file=file, options=asked)
    return file.getvalue()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(transcript=transcripts(words=False) | transcripts(words=True), layout=LAYOUTS)
def test_each_format_is_the_same_text(transcript, layout):
    for format in WRITERS: assert write_as(transcript, format, layout) == theirs(transcript, format, layout), format


def test_the_original_makes_the_same_file(tmp_path):
    transcript = Transcript('', (Segment(0, 1, ' Ünï 🎉 --> x'), Segment(3600.5, 3602, ' b')), 'en', 1.0, 1.0)
    utils.get_writer('all', str(tmp_path))(as_result(transcript), 'some/talk.of.mine.mp3', {})
    assert {path.suffix[1:]: path.read_bytes() for path in tmp_path.iterdir()} == {format: write_as(transcript, format).encode() for format in WRITERS}
    assert all(path.stem == 'talk.of.mine' for path in tmp_path.iterdir())


def test_json_has_the_keys_in_their_order():
    word = Word(0.1, 0.5, ' hi', 0.9)
    found = json.loads(write_as(Transcript('hi', (Segment(0, 1, ' hi', (word,)), Segment(1, 2, ' ho')), 'en', 2.0, 1.0), 'json'))
    assert list(found) == ['text', 'segments', 'language'] and found['text'] == ' hi ho'
    assert list(found['segments'][0]) == ['id', 'seek', 'start', 'end', 'text', 'tokens', 'temperature', 'avg_logprob', 'compression_ratio', 'no_speech_prob', 'words']
    assert found['segments'][0]['words'] == [dict(word=' hi', start=0.1, end=0.5, probability=0.9)] and found['segments'][1]['words'] == []
