"The backends load offline or not at all, are asked the same, and keep quiet."
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from checkpoints import edit, make_checkpoint

from whisper_nb import backends
from whisper_nb.audio import clips, default_clip, load_audio
from whisper_nb.backends import BACKENDS, load, model_format, pick_backend
from whisper_nb.convert import convert
from whisper_nb.errors import CheckError, RequestError, StepError
from whisper_nb.models import DEMO_DIR


@pytest.fixture
def speech(): return load_audio(default_clip().path)


def test_the_directory_decides(tiny):
    for backend, path in tiny.items(): assert pick_backend(path).name == backend and load(path).backend.name == backend


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_other_format_is_refused_with_the_way_out(tiny, backend):
    path = next(path for name, path in tiny.items() if name != backend)
    with pytest.raises(RequestError) as caught: load(path, backend)
    assert f'use the backend {pick_backend(path).name}' in caught.value.advice


@pytest.mark.parametrize('backend, name', [('faster-whisper', name) for name in ('config.json', 'vocabulary.json', 'tokenizer.json', 'preprocessor_config.json')]
    + [('transformers', name) for name in ('model.safetensors', 'tokenizer.json', 'preprocessor_config.json')])
def test_a_missing_file_is_named_and_never_fetched(copied, backend, name, monkeypatch):
    path = copied(backend)
    (path/name).unlink()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: pytest.fail('asked for an address'))
    with pytest.raises(CheckError) as caught: load(path)
    assert name.removeprefix('model') in caught.value.what and 'whisper-nb verify' in caught.value.advice


@pytest.mark.parametrize('name', ['tiny', 'openai/whisper-tiny', 'no/such/directory', ''])
def test_what_is_no_directory_is_never_taken_for_a_repository(name, monkeypatch):
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: pytest.fail('asked for an address'))
    with pytest.raises((RequestError, CheckError)): load(name)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"model_type": "bert"}', b'\xff\xfe'])
def test_what_is_no_whisper(tmp_path, content):
    (tmp_path/'config.json').write_bytes(content)
    with pytest.raises(CheckError, match='holds no Whisper model'): model_format(tmp_path)


@pytest.mark.parametrize('backend, name', [('faster-whisper', 'model.bin'), ('transformers', 'model.safetensors')])
def test_a_truncated_model_is_explained(copied, backend, name):
    path = copied(backend)
    with open(path/name, 'r+b') as file: file.truncate((path/name).stat().st_size//2)
    with pytest.raises(CheckError) as caught: load(path)
    assert f"{backend} could not load '{path.name}'" in caught.value.what and '\n' not in caught.value.what and 'whisper-nb verify' in caught.value.advice


def test_the_wrong_number_of_mel_bins_is_explained(copied, speech):
    path = copied('faster-whisper')
    edit(path/'preprocessor_config.json', feature_size=128)
    with pytest.raises(CheckError, match='could not transcribe') as caught: load(path).transcribe(speech, language='en')
    assert '128' in caught.value.what


@pytest.mark.parametrize('reason, what, advice', [
    ('CUDA failed with error out of memory', 'not enough memory', 'smaller quantization'),
    ('std::bad_alloc', 'not enough memory', 'smaller quantization'),
    ('Library libcublas.so.12 is not found or cannot be loaded', 'lacks a CUDA library', 'nvidia-cublas-cu12'),
])
def test_what_the_machine_lacks_is_no_fault_of_the_model(tiny, monkeypatch, reason, what, advice):
    def fail(*_): raise RuntimeError(reason)
    monkeypatch.setitem(BACKENDS, 'transformers', replace(BACKENDS['transformers'], open=fail))
    with pytest.raises(StepError, match=what) as caught: load(tiny['transformers'])
    assert advice in caught.value.advice


@pytest.mark.parametrize('backend', BACKENDS)
def test_devices_and_types(tiny, backend):
    types = BACKENDS[backend].devices()['cpu']
    assert 'float32' in types
    for wrong in (dict(device='tpu'), dict(device='cpu', compute_type='float7')):
        with pytest.raises(RequestError) as caught: load(tiny[backend], **wrong)
        assert 'use one of' in caught.value.advice
    for name in types: assert load(tiny[backend], device='cpu', compute_type=name).compute_type.startswith(name.split('_')[0])


@pytest.mark.parametrize('backend', BACKENDS)
def test_long_audio_is_walked_through_in_windows(tiny, backend, speech):
    audio = np.concatenate([speech]*(70*16_000//len(speech)))
    found = load(tiny[backend]).transcribe(audio, language='en', beam_size=1)
    starts, ends = [each.start for each in found.segments], [each.end for each in found.segments]
    assert found.audio_seconds == len(audio)/16_000 and max(starts) > 31 and max(ends) <= found.audio_seconds
    assert starts == sorted(starts) and all(start <= end for start, end in zip(starts, ends))
    assert found.text == ' '.join(each.text for each in found.segments) and found.rtfx > 0


@pytest.mark.parametrize('backend', BACKENDS)
def test_languages(tiny, backend, speech):
    model = load(tiny[backend])
    assert model.languages == ('de', 'en', 'fr') and model.transcribe(speech, beam_size=1).language in model.languages
    with pytest.raises(RequestError, match="does not know the language 'xx'"): model.transcribe(speech, language='xx')


def test_both_detect_the_same_language(tiny, speech):
    assert len({load(path).transcribe(speech, beam_size=1).language for path in tiny.values()}) == 1


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_same_audio_gives_the_same_words(tiny, backend, speech):
    model = load(tiny[backend])
    assert len({model.transcribe(speech, language='en').text for _ in range(3)}) == 1


def test_threads_are_passed_on(tiny):
    import torch
    before = torch.get_num_threads()
    try:
        load(tiny['transformers'], threads=1)
        assert torch.get_num_threads() == 1
    finally: torch.set_num_threads(before)
    load(tiny['faster-whisper'], threads=1)


QUIET = '''
import sys
from dataclasses import replace
from whisper_nb.audio import default_clip
from whisper_nb.backends import load
for path in sys.argv[1:]:
    model = load(path)
    for options in (dict(language='en'), dict(), dict(language='en', beam_size=1, word_timestamps=True)): model.transcribe(default_clip().path, **options)
'''


def test_nothing_is_printed(tiny):
    done = subprocess.run([sys.executable, '-W', 'default', '-c', QUIET, *tiny.values()], capture_output=True, text=True, env={**os.environ, 'TQDM_DISABLE': '0'})
    assert (done.returncode, done.stdout) == (0, '')
    ours = [line for line in done.stderr.splitlines() if 'DeprecationWarning' not in line]  # of libraries, at import, with -W default
    assert not [line for line in ours if any(word in line for word in ('transformers', 'Loading', 'float16', 'attention', 'warn'))], done.stderr


def test_a_backend_more_is_a_row_more(tiny, monkeypatch, speech):
    echo = backends.Backend('echo', 'transformers', 'echo', ('config.json',), lambda: {'cpu': ('float32',)}, lambda *_: ('engine', 'float32'), lambda engine: ('en',),
        lambda engine, samples, options: ([backends.Segment(0, 1, f'{len(samples)} {options.task}')], 'en'))
    monkeypatch.setitem(BACKENDS, 'echo', echo)
    assert load(tiny['transformers'], 'echo').transcribe(speech, task='translate').text == f'{len(speech)} translate'


def test_segments_behind_the_end_are_cut(tiny, monkeypatch, speech):
    end = len(speech)/16_000
    said = [backends.Segment(0, 1, 'yes'), backends.Segment(1, 1.5, ''), backends.Segment(1.5, end + 9, 'cut'), backends.Segment(end + 1, end + 2, 'no')]
    monkeypatch.setitem(BACKENDS, 'transformers', replace(BACKENDS['transformers'], decode=lambda *_: (said, 'en')))
    found = load(tiny['transformers']).transcribe(speech)
    assert found.text == 'yes cut' and found.segments[-1].end == end


# ---- the demo model's words

@pytest.mark.parametrize('quantization, compute_type', [('float16', 'default'), ('int8', 'default'), (None, 'default')])
def test_the_words_of_the_clips(tmp_path, quantization, compute_type):
    source = shutil.copytree(DEMO_DIR, tmp_path/'demo')
    model = load(source if quantization is None else convert(source, quantization, models_dir=tmp_path/'models').path, device='cpu')
    heard = {clip.path.name: model.transcribe(clip.path, language='en').text for clip in clips() if clip.condition in ('clean', 'silence')}
    assert heard == {clip.path.name: clip.text for clip in clips() if clip.path.name in heard}


def test_word_times_follow_the_speech(tmp_path):
    source = shutil.copytree(DEMO_DIR, tmp_path/'demo')
    paths = [source, convert(source, 'float32', models_dir=tmp_path/'models').path]
    one, other = ([word for segment in load(path).transcribe(default_clip().path, language='en', word_timestamps=True).segments for word in segment.words] for path in paths)
    assert [word.text.strip() for word in one] == [word.text.strip() for word in other] == default_clip().text.split()
    assert all(word.start <= word.end <= default_clip().seconds + 0.1 for word in one + other)
    assert np.median([abs(word.start - twin.start) for word, twin in zip(one, other)]) < 0.3
