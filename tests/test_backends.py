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
from whisper_nb.backends import BACKENDS, load, pick_backend
from whisper_nb.convert import convert
from whisper_nb.errors import CheckError, RequestError, StepError
from whisper_nb.models import DEMO_DIR
from whisper_nb.speech import find_speech


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
    with pytest.raises(CheckError, match='holds no Whisper model'): pick_backend(tmp_path)


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
    ('Library libcublas.so.12 is not found or cannot be loaded', 'lacks a CUDA library', 'pip install nvidia-cublas-cu12'),
])
def test_what_the_machine_lacks_is_no_fault_of_the_model(tiny, monkeypatch, reason, what, advice):
    def fail(*_): raise RuntimeError(reason)
    monkeypatch.setitem(BACKENDS, 'transformers', replace(BACKENDS['transformers'], open=fail))
    with pytest.raises(StepError, match=what) as caught: load(tiny['transformers'])
    assert advice in caught.value.advice


SHORT = """
import re, sys
from pathlib import Path
import numpy as np
from whisper_nb.audio import default_clip, load_audio
from whisper_nb.backends import load
from whisper_nb.memory import limit_memory

def tried(room, work, *arguments, **options):
    held = int(re.search(r'VmData:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])*1024
    try: limit_memory(held + room), work(*arguments, **options)
    except Exception as error: print(type(error).__name__, error)
    finally: limit_memory(1 << 50)

recording = np.tile(load_audio(default_clip().path), 80)
model = load(sys.argv[1], device='cpu')
model.transcribe(recording[:48_000], language='en', beam_size=1, vad=True)
tried(1_000_000, load, sys.argv[1], device='cpu')
if model.backend.batch: tried(80_000_000, model.transcribe, recording, language='en', batch_size=64)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='Linux keeps the limit')
@pytest.mark.parametrize('backend', BACKENDS)
def test_too_little_memory_is_an_error_and_no_crash(tiny, backend):
    "The memory of a child is limited for real, once its libraries are loaded."
    done = subprocess.run([sys.executable, '-c', SHORT, tiny[backend]], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    wanted = [f"OutOfMemory not enough memory to {doing} '{tiny[backend].name}'" for doing in ('load', 'transcribe with')][:2 if BACKENDS[backend].batch else 1]
    assert done.returncode == 0 and done.stdout.splitlines() == wanted, done.stdout + done.stderr


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
    assert found.text == ''.join(each.text for each in found.segments).strip() and found.rtfx > 0
    assert [each.id for each in found.segments] == list(range(len(starts))) and all(each.seek/100 <= each.start + 0.01 < each.seek/100 + 30.1 for each in found.segments)
    assert all(each.tokens and each.temperature == 0 and each.avg_logprob < 0 and each.compression_ratio > 0 for each in found.segments)


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
    assert len({model.transcribe(speech, language='en', beam_size=2).text for _ in range(2)}) == 1


@pytest.fixture(scope='module', params=[dict(multilingual=False), dict(vocabulary=51864)], ids=['English only', "OpenAI's, English only"])
def english(request, tmp_path_factory): return make_checkpoint(tmp_path_factory.mktemp('models')/'english', inner=4, **request.param)


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_model_without_the_task_refuses_to_translate(english, backend, speech):
    model = load(english if backend == 'transformers' else convert(english, 'float32', format=BACKENDS[backend].format).path, device='cpu')
    assert (model.languages, model.tasks) == (('en',), ('transcribe',))
    with pytest.raises(RequestError, match='cannot translate') as caught: model.transcribe(speech, task='translate')
    assert 'multilingual' in caught.value.advice and '\n' not in caught.value.what + caught.value.advice
    assert model.transcribe(speech, beam_size=1).language == 'en'


def test_several_temperatures_end_where_the_words_are_sure(tiny, speech):
    for backend in BACKENDS: # a random model is never sure, so a window goes through all of them
        found = load(tiny[backend]).transcribe(speech, language='en', beam_size=2, temperature=(0, 0.4))
        assert all(each.temperature in (0, 0.4) and each.avg_logprob < 0 for each in found.segments), backend


def test_the_beam_is_as_wide_after_a_window_that_was_drawn(tiny, speech, monkeypatch):
    model, beams = load(tiny['transformers']), []
    def watched(*arguments, generation_config, original=model.engine.model.generate_with_fallback, **options):
        beams.append(generation_config.num_beams)
        return original(*arguments, generation_config=generation_config, **options)
    monkeypatch.setattr(model.engine.model, 'generate_with_fallback', watched)
    model.transcribe(np.concatenate([speech]*(40*16_000//len(speech))), language='en', beam_size=3, temperature=(0, 0.4))
    assert len(beams) > 1 and set(beams) == {3}


PEAK = '''
import sys
import numpy as np
from whisper_nb.audio import clips, load_audio
from whisper_nb.backends import load
from whisper_nb.memory import peak_memory
model, clip = load(sys.argv[1], device='cpu'), np.concatenate([load_audio(clip.path) for clip in clips() if clip.text])
for windows in (1, 3): # the spectrogram grows with the length, what is kept of the windows must not
    model.transcribe(np.resize(clip, windows*30*16_000), language='en', beam_size=2, word_timestamps=True)
    print(peak_memory())
'''


def test_memory_does_not_grow_with_the_windows():
    done = subprocess.run([sys.executable, '-c', PEAK, str(DEMO_DIR)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())
    assert long - short < 250_000_000, (short, long) # kept for all of six more windows, it was 1.3 GB


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
    for options in (dict(language='en', beam_size=2), dict(beam_size=1, word_timestamps=True)): model.transcribe(default_clip().path, **options)
'''


def test_nothing_is_printed(tiny):
    done = subprocess.run([sys.executable, '-W', 'default', '-c', QUIET, *tiny.values()], capture_output=True, text=True, env={**os.environ, 'TQDM_DISABLE': '0'})
    assert (done.returncode, done.stdout) == (0, '')
    ours = [line for line in done.stderr.splitlines() if 'DeprecationWarning' not in line]  # of libraries, at import, with -W default
    assert not [line for line in ours if any(word in line for word in ('transformers', 'Loading', 'float16', 'attention', 'warn'))], done.stderr


def test_a_backend_more_is_a_row_more(tiny, monkeypatch, speech):
    echo = backends.Backend('echo', 'transformers', 'echo', lambda: {'cpu': ('float32',)}, lambda *_: ('engine', 'float32'), lambda engine: ('en',),
        lambda engine, samples, options: ([backends.Segment(0, 1, f'{len(samples)} {options.task}')], 'en'))
    monkeypatch.setitem(BACKENDS, 'echo', echo)
    assert load(tiny['transformers'], 'echo').transcribe(speech, task='translate').text == f'{len(speech)} translate'


def test_segments_behind_the_end_are_cut(tiny, monkeypatch, speech):
    end = len(speech)/16_000
    said = [backends.Segment(0, 1, ' yes'), backends.Segment(1, 1.5, ' '), backends.Segment(1.5, end + 9, ' cut'), backends.Segment(end + 1, end + 2, ' no')]
    monkeypatch.setitem(BACKENDS, 'transformers', replace(BACKENDS['transformers'], decode=lambda *_: (said, 'en')))
    found = load(tiny['transformers']).transcribe(speech)
    assert found.text == 'yes cut' and found.segments[-1].end == end and [each.id for each in found.segments] == [0, 1]


# ---- silence, batches, prompt

ABLE = [name for name, backend in BACKENDS.items() if backend.batch]


@pytest.fixture
def counted(monkeypatch):
    "How much of a recording reaches each library, s."
    seconds = []
    for name, backend in list(BACKENDS.items()):
        def decode(engine, samples, options, backend=backend):
            seconds.append(len(samples)/16_000)
            return backend.decode(engine, samples, options)
        monkeypatch.setitem(BACKENDS, name, replace(backend, decode=decode))
    return seconds


@pytest.mark.parametrize('backend', BACKENDS)
def test_silence_is_left_out_and_the_times_are_those_of_the_recording(tiny, backend, speech, counted):
    recording = np.concatenate([np.zeros(40*16_000, np.float32), speech, np.zeros(20*16_000, np.float32)])
    found = load(tiny[backend]).transcribe(recording, language='en', beam_size=1, vad=True, word_timestamps=True)
    assert counted[0] < 6 and found.segments and found.audio_seconds == len(recording)/16_000
    for segment in found.segments:
        assert 39 < segment.start <= segment.end < 46
        for word in segment.words: assert 39 < word.start <= word.end < 46


@pytest.mark.parametrize('backend, options', [(name, dict(vad=True)) for name in BACKENDS] + [(name, dict(batch_size=4)) for name in ABLE])
def test_where_nobody_speaks_there_is_nothing(tiny, backend, options, counted):
    found = load(tiny[backend]).transcribe(np.zeros(70*16_000, np.float32), **options)
    assert (found.text, found.segments, found.language, counted) == ('', (), None, [])
    assert load(tiny[backend]).transcribe(np.zeros(16_000, np.float32), language='en', **options).language == 'en'


@pytest.mark.parametrize('backend', ABLE)
def test_a_batch_is_in_order_and_within_its_chunks(tiny, backend, speech):
    recording = np.concatenate([part for _ in range(30) for part in (speech, np.zeros(3*16_000, np.float32))]) # a minute and more of speech
    model, found_speech = load(tiny[backend]), find_speech(recording, chunks=True)
    found = [model.transcribe(recording, language='en', beam_size=1, batch_size=size, word_timestamps=words) for size, words in ((2, False), (8, True))]
    assert found[0].segments and [each.tokens for each in found[0].segments] == [each.tokens for each in found[1].segments] # the size of a batch changes nothing
    for each in found:
        chunks = [segment.seek for segment in each.segments]
        assert chunks == sorted(chunks) and len(set(chunks)) == 3 and max(segment.end for segment in each.segments) <= each.audio_seconds
        slower = len(recording)/16_000/found_speech.seconds # times in the recording pass faster than in its speech
        for segment in each.segments: assert slower*segment.seek/100 - 4 < segment.start <= segment.end < slower*(segment.seek/100 + 29) + 4
        for word in (word for segment in each.segments for word in segment.words): assert word.start <= word.end <= each.audio_seconds


@pytest.mark.parametrize('backend', set(BACKENDS) - set(ABLE))
def test_who_cannot_do_batches_says_who_can(tiny, backend, speech):
    with pytest.raises(RequestError, match='cannot decode several') as caught: load(tiny[backend]).transcribe(speech, batch_size=2)
    assert all(name in caught.value.advice for name in ABLE)


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_prompt_is_for_the_first_window(tiny, backend, speech):
    recording = np.concatenate([speech]*(40*16_000//len(speech)))
    model = load(tiny[backend])
    plain, prompted, longest = (model.transcribe(recording, language='en', beam_size=1, initial_prompt=prompt).segments for prompt in (None, ' the  kitchen ', 'the kitchen '*400))
    assert plain[0].avg_logprob != prompted[0].avg_logprob != longest[0].avg_logprob
    later = [[(each.tokens, round(each.avg_logprob, 3)) for each in segments if each.seek >= 3000] for segments in (plain, prompted)]
    if {each.seek for each in plain} == {each.seek for each in prompted}: assert later[0] == later[1]


def test_faster_whisper_and_openai_whisper_are_asked_the_same(tmp_path):
    source = shutil.copytree(DEMO_DIR, tmp_path/'demo')
    models = [load(convert(source, 'float32', models_dir=tmp_path/'models', format=format).path, device='cpu') for format in ('ctranslate2', 'openai')]
    for options in (dict(), dict(initial_prompt=' alice '), dict(beam_size=1, temperature=(0, 0.2)), dict(word_timestamps=True)):
        one, other = (model.transcribe(default_clip().path, language='en', **options).segments[0] for model in models)
        assert (one.text, one.tokens, one.start, one.end, one.seek, one.temperature) == (other.text, other.tokens, other.start, other.end, other.seek, other.temperature), options
        for name in ('avg_logprob', 'compression_ratio', 'no_speech_prob'): assert abs(getattr(one, name) - getattr(other, name)) < 1e-3, (name, options)
        assert [word.text for word in one.words] == [word.text for word in other.words]
        assert all(abs(word.probability - twin.probability) < 0.01 and abs(word.start - twin.start) < 0.1 for word, twin in zip(one.words, other.words))


def test_text_is_kept_as_decoded(tmp_path):
    source = shutil.copytree(DEMO_DIR, tmp_path/'demo')
    for path in (source, convert(source, 'float32', models_dir=tmp_path/'models').path):
        found = load(path, device='cpu').transcribe(default_clip().path, language='en', word_timestamps=True)
        (segment,) = found.segments
        assert segment.text == f' {default_clip().text}' == ''.join(word.text for word in segment.words) and found.text == default_clip().text
        assert all(0 < word.probability <= 1 for word in segment.words)


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
