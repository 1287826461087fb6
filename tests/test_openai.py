"The third backend: what is written is the same model, openai-whisper runs it offline with its own tokenizer and heads, and what is not so is refused."
import base64
import gzip
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from importlib import import_module

import numpy as np
import pytest
import torch

from checkpoints import SENTENCE, edit, make_checkpoint, read, seal

from whisper_nb.audio import clips, default_clip, load_audio
from whisper_nb.backends import load
from whisper_nb.convert import convert, convert_all
from whisper_nb.errors import CheckError, RequestError, StepError
from whisper_nb.formats import read_safetensors
from whisper_nb.layout import TIMESTAMPS
from whisper_nb.models import CHECKPOINTS, DEMO_DIR
from whisper_nb.offline import memory_needed, offline_test, pick_backend
from whisper_nb.openai_engine import _Encoding, alignment_dump, whisper_tokenizer
from whisper_nb.openai_file import openai_name, read_model_pt
from whisper_nb.openai_format import OPENAI_QUANTIZATIONS, write_openai
from whisper_nb.verify import verify
from whisper_nb.vocabulary import write_tokenizer


def make(directory, **options): return make_checkpoint(directory, **dict(inner=4) | options)


def state_of(path): return torch.load(path, weights_only=True)['model_state_dict']


@pytest.fixture(scope='session')
def demos(tmp_path_factory):
    "The demo model in all three formats, by backend."
    source = shutil.copytree(DEMO_DIR, tmp_path_factory.mktemp('demos')/'demo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        return {'faster-whisper': convert(source).path, 'transformers': source, 'openai-whisper': convert(source, format='openai').path}


@pytest.fixture(scope='session')
def loaded(demos): return {backend: load(path, backend) for backend, path in demos.items()}


@pytest.fixture
def openai(demos, tmp_path):
    "A copy that a test may harm."
    return shutil.copytree(demos['openai-whisper'], tmp_path/'demo-openai-float16')


def words_of(transcript): return [word for segment in transcript.segments for word in segment.words]


# ---- the same model

@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16', 'float64'])
def test_the_weights_are_the_source_s(tmp_path, dtype):
    source = make(tmp_path/'tiny', dtype=dtype)
    write_openai(source, {quantization: tmp_path/f'{quantization}.pt' for quantization in OPENAI_QUANTIZATIONS})
    from safetensors.torch import load_file
    theirs = {openai_name(name): tensor for name, tensor in load_file(source/'model.safetensors').items()}
    for quantization in OPENAI_QUANTIZATIONS:
        ours = state_of(tmp_path/f'{quantization}.pt')
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == getattr(torch, quantization)
            assert torch.equal(tensor, theirs[name].to(tensor.dtype)), name


@pytest.mark.parametrize('shape', [dict(), dict(mel_bins=128), dict(encoder_layers=3, decoder_layers=1), dict(shards=True, dtype='float32'), dict(heads=4, width=64)])
def test_it_computes_what_transformers_computes(tmp_path, shape):
    import whisper
    from transformers import WhisperForConditionalGeneration
    source = make(tmp_path/'tiny', **shape)
    ours = whisper.load_model(str(convert(source, 'float32', format='openai').path/'model.pt'), device='cpu')
    theirs = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    mel, tokens = torch.randn(1, shape.get('mel_bins', 80), 3000), torch.tensor([[260, 261, 262, 5, 7]])
    with torch.inference_mode(): assert torch.allclose(ours(mel, tokens), theirs(mel, decoder_input_ids=tokens).logits, atol=1e-4)


def test_heads_may_differ(tmp_path):
    "openai-whisper has a number for the encoder's heads and one for the decoder's."
    source = make(tmp_path/'tiny')
    edit(source/'config.json', decoder_attention_heads=4)
    seal(source)
    dims = read_model_pt(convert(source, format='openai').path/'model.pt').details['dims']
    assert (dims['n_audio_head'], dims['n_text_head']) == (2, 4)


def test_the_same_source_gives_the_same_bytes(tmp_path):
    one, shards = (make(tmp_path/name, shards=name == 'shards') for name in ('one', 'shards'))
    both = write_openai(one, {quantization: tmp_path/f'{quantization}.pt' for quantization in ('float16', 'float32')})
    for quantization, digest in both.items():
        assert write_openai(one, {quantization: tmp_path/f'{quantization}.again'})[quantization] == digest
        assert write_openai(shards, {quantization: tmp_path/f'{quantization}.shards'})[quantization] == digest
    first = convert(one, format='openai')
    before = (first.path/'model.pt').read_bytes(), (first.path/'manifest.json').read_bytes()
    assert convert(one, format='openai').reused and not convert(one, format='openai', fresh=True).reused
    assert ((first.path/'model.pt').read_bytes(), (first.path/'manifest.json').read_bytes()) == before
    command = f'from whisper_nb.openai_format import write_openai; print(write_openai({str(one)!r}, dict(float16={str(tmp_path/"other.pt")!r}))["float16"])'
    assert subprocess.run([sys.executable, '-c', command], capture_output=True, text=True).stdout.split()[-1] == both['float16']


def test_any_zip_tool_reads_it(demos):
    with zipfile.ZipFile(demos['openai-whisper']/'model.pt') as archive:
        assert archive.testzip() is None
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED} and {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_can_be_mapped_into_memory(demos):
    mapped = torch.load(demos['openai-whisper']/'model.pt', weights_only=True, mmap=True)['model_state_dict']
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values())
    assert all(torch.equal(tensor, mapped[name]) for name, tensor in state_of(demos['openai-whisper']/'model.pt').items())


def test_several_types_at_once(tmp_path):
    found = convert_all(make(tmp_path/'tiny'), OPENAI_QUANTIZATIONS, format='openai')
    assert [each.path.name for each in found] == [f'tiny-openai-{quantization}' for quantization in OPENAI_QUANTIZATIONS]
    for each in found: assert verify(each.path).backends == ('openai-whisper',) and set(read_model_pt(each.path/'model.pt').dtypes) == {each.quantization}


def test_what_the_source_lacks_is_made(tmp_path):
    source = make(tmp_path/'tiny', tokenizer='pieces', features='processor', generation=False)
    found = convert(source, format='openai')
    assert 'alignment heads are unknown' in ' '.join(found.notes) and 'tokenizer.json built' in ' '.join(found.notes)
    settings = read(found.path/'generation_config.json')
    assert settings['is_multilingual'] and settings['alignment_heads'] == [[1, 0], [1, 1]] and len(settings['lang_to_id']) == 3
    assert not verify(found.path).failures and (found.path/'README.md').is_file()


# ---- refused

@pytest.mark.parametrize('config, options, words', [
    ({}, dict(inner=2), 'feed-forward blocks 64 wide'), ({}, dict(mel_bins=64), '64 mel bins'), ({}, dict(tied=False), 'output layer differs'),
    (dict(activation_function='relu'), {}, "activation_function='relu': openai-whisper"), (dict(scale_embedding=True), {}, 'scale_embedding=True'),
])
def test_what_openai_whisper_cannot_say_is_refused(tmp_path, config, options, words):
    source = make(tmp_path/'tiny', **options)
    edit(source/'config.json', **config)
    seal(source)
    with pytest.raises(CheckError, match=words) as caught: convert(source, format='openai')
    assert 'transformers' in caught.value.advice and not (tmp_path/'tiny-openai-float16').exists() and not list(tmp_path.glob('.staging/*'))


def test_an_output_layer_that_is_only_a_copy_is_none(tmp_path):
    from safetensors.torch import load_file, save_file
    source = make(tmp_path/'tiny')
    weights = load_file(source/'model.safetensors')
    plain = write_openai(source, dict(float16=tmp_path/'plain.pt'))
    save_file(weights | {'proj_out.weight': weights['model.decoder.embed_tokens.weight'].clone()}, source/'model.safetensors')
    assert write_openai(source, dict(float16=tmp_path/'copy.pt')) == plain


def test_requests_that_cannot_be_meant(tmp_path, demos):
    source = make(tmp_path/'tiny')
    for options, words in ((dict(quantization='int8'), "stored as 'int8'"), (dict(format='gguf', ), "no conversion to 'gguf'")):
        with pytest.raises(RequestError, match=words) as caught: convert(source, **dict(format='openai') | options)
        assert 'choose one of' in caught.value.advice
    for format in ('openai', 'ctranslate2'):
        with pytest.raises(RequestError, match='already a model for openai-whisper'): convert(demos['openai-whisper'], format=format)


def test_the_command(tmp_path, whisper_nb):
    source = make(tmp_path/'tiny')
    done = whisper_nb('convert', source, '--format', 'openai', '--quantization', 'float16,float32')
    assert done.returncode == 0 and 'tiny-openai-float32' in done.stdout
    assert whisper_nb('verify', tmp_path/'tiny-openai-float32').stdout.endswith('loads offline with: openai-whisper\n')
    wrong = whisper_nb('convert', source, '--format', 'openai', '--quantization', 'int8')
    assert wrong.returncode == 2 and 'choose one of: float16, float32, bfloat16' in wrong.stderr


# ---- verify

def test_a_sound_one_verifies(demos):
    found = verify(demos['openai-whisper'])
    assert (found.format, found.backends, found.parameters) == ('openai', ('openai-whisper',), read_safetensors(DEMO_DIR/'model.safetensors').parameters)
    assert not [check for check in found.checks if check.ok is not True]


@pytest.mark.parametrize('name', ['tokenizer.json', 'generation_config.json', 'preprocessor_config.json'])
def test_a_missing_file_is_named_and_never_fetched(openai, name, monkeypatch):
    (openai/name).unlink()
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *_, **__: pytest.fail('asked for an address'))
    assert name in verify(openai).failures[0].detail
    with pytest.raises(CheckError, match=name): load(openai)


class Trap:
    def __reduce__(self): return open, ('sprung', 'w')


def save(path, **changes):
    content = dict(torch.load(path, weights_only=True))
    content['dims'], content['model_state_dict'] = content['dims'] | changes.pop('dims', {}), content['model_state_dict'] | changes.pop('state', {})
    torch.save(content | changes, path)


FAULTS = {
    'it would run code': (lambda path: save(path, trap=Trap()), 'weights', 'could run code'),
    'code among the tensors': (lambda path: save(path, state={'decoder.ln.bias': Trap()}), 'weights', 'could run code'),
    'the whole module': (lambda path: torch.save(torch.nn.Linear(2, 2), path), 'weights', 'torch.nn'),
    'only the tensors': (lambda path: torch.save(state_of(path), path), 'weights', "no 'dims'"),
    'cut off': (lambda path: path.write_bytes(path.read_bytes()[:-1000]), 'weights', 'no complete file'),
    'empty': (lambda path: path.write_bytes(b''), 'weights', 'no complete file'),
    'an old pickle': (lambda path: torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False), 'weights', 'no complete file'),
    'other dims': (lambda path: save(path, dims=dict(n_text_layer=3)), 'shapes', 'is missing'),
    'dims of nonsense': (lambda path: save(path, dims=dict(n_mels='many')), 'shapes', 'n_mels'),
    'a tensor too many': (lambda path: save(path, state={'decoder.more': torch.zeros(2, dtype=torch.float16)}), 'shapes', 'belongs to no part'),
    'a tensor of another shape': (lambda path: save(path, state={'decoder.ln.bias': torch.zeros(2, dtype=torch.float16)}), 'shapes', 'has shape (2,)'),
    'whole numbers': (lambda path: save(path, state={'decoder.ln.bias': torch.zeros(128, dtype=torch.int64)}), 'weights', 'LongStorage'),
    'another type than stated': (lambda path: save(path, state={name: tensor.float() for name, tensor in state_of(path).items()}), 'weights', 'the manifest says float16'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_model_pt_that_is_not_what_it_should_be(openai, fault, tmp_path):
    change, check, words = FAULTS[fault]
    change(openai/'model.pt')
    found = verify(openai)
    failed = {each.name: each.detail for each in found.failures}
    assert words in failed.get(check, failed.get('weights', '')) and not found.backends and not (tmp_path/'sprung').exists(), found
    assert 'integrity' in failed  # the manifest knows, too
    assert all(each.fix for each in found.failures)


HOSTILE = {  # Bytes that would hurt Python's own unpickler, and what is said of them
    'a memory of sixteen gigabytes': (b'\x80\x02}r\xff\xff\xff\x7f.', "no 'dims'"),
    'a terabyte of bytes': (b'\x80\x05\x96' + (10**12).to_bytes(8, 'little') + b'.', 'no plain checkpoint'),
    'a key that takes for ever to hash': (b'\x80\x02})' + b'2\x86'*60 + b'Ns.', 'no plain checkpoint'),
    'the same by way of the memory': (b'\x80\x02})q\x00' + b'h\x00h\x00\x86q\x00'*60 + b'Ns.', 'strange key'),
    'a key too deep to hash': (b'\x80\x02})' + b'\x85'*1_000_000 + b'Ns.', 'strange key'),
    'too deep a list': (b'\x80\x02' + b']'*900_000 + b'a'*899_999 + b'.', "no 'dims'"),
    'attributes for a function': (b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x01ab.', 'no plain checkpoint'),
    'a text times a number': (b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00X\x01\x00\x00\x00aJ\xff\xff\xff\x7f\x86)tR.', 'no shape'),
    'too few values': (b'\x80\x02}\x87.', 'a value is missing'),
    'no end': (b'\x80\x02}', 'no plain checkpoint'),
    'nothing': (b'', 'no plain checkpoint'),
    'too long': (b'\x80\x02' + b'}'*3_000_000 + b'.', 'its description has'),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_a_hostile_description_costs_nothing(tmp_path, name):
    "In a process with 1 GB of memory and 20 seconds."
    description, words = HOSTILE[name]
    with zipfile.ZipFile(tmp_path/'model.pt', 'w') as archive: archive.writestr('model/data.pkl', description)
    program = f"""import resource, signal
resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); signal.alarm(20)
from whisper_nb.openai_file import read_model_pt
from whisper_nb.formats import FormatError
try: read_model_pt({str(tmp_path/'model.pt')!r})
except FormatError as error: print(error.what)"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0 and words in done.stdout, done


def test_what_torch_writes_in_other_ways_is_read(demos, tmp_path):
    "A newer pickle, a module's own dictionary, and things beside the weights."
    content = torch.load(demos['openai-whisper']/'model.pt', weights_only=True)
    expected = read_model_pt(demos['openai-whisper']/'model.pt').tensors
    torch.save(content, tmp_path/'newer.pt', pickle_protocol=4)
    import whisper
    model = whisper.load_model(str(demos['openai-whisper']/'model.pt'), device='cpu')
    torch.save(content | dict(model_state_dict=model.half().state_dict(), step=12345678901, rate=1e-3, betas=(0.9, 0.99), done=False, more=[None, [1]]), tmp_path/'more.pt')
    assert read_model_pt(tmp_path/'newer.pt').tensors == read_model_pt(tmp_path/'more.pt').tensors == expected


def test_a_flipped_byte_is_found(openai):
    with open(openai/'model.pt', 'r+b') as file:
        file.seek(-200_000, 2)
        byte = file.read(1)
        file.seek(-200_000, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert [check.name for check in verify(openai).failures] == ['integrity']


@pytest.mark.parametrize('name, change, words', [
    ('generation_config.json', dict(alignment_heads=[[9, 0]]), 'no [layer, head] pairs'), ('generation_config.json', dict(no_timestamps_token_id=3), 'no_timestamps_token_id'),
    ('generation_config.json', dict(lang_to_id={'<|en|>': 3}), 'lang_to_id'), ('preprocessor_config.json', dict(feature_size=128), 'makes 128 mel bins'),
])
def test_settings_that_do_not_fit(openai, name, change, words):
    edit(openai/name, **change)
    assert any(words in check.detail for check in verify(openai).failures)


def test_the_remedy_makes_it_again(openai):
    (openai/'model.pt').write_bytes(b'')
    assert 'convert' in verify(openai).failures[0].fix and '--format openai' in verify(openai).failures[0].fix


# ---- the tokenizer

TEXTS = ['', ' ', ' turn on the kitchen lights', " it's 5 o'clock… she'll say \"no\"", ' Grüße aus Köln', '你好,世界', ' こんにちは', ' สวัสดี', ' naïve\tcafé\n\nnew  line   ', ' 👋🏽 ♪♪ ♩', '1234567890', ' <|notatoken|>',
    ' -- << >> (laughs) [music]', 'ÿ\u200b\ufeff']


@pytest.fixture(scope='module', params=[51864, 51865, 51866])
def vocabulary(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f'tokens-{request.param}')
    write_tokenizer(folder, request.param)
    return folder, request.param > 51864, 99 if request.param < 51866 else 100


def test_it_is_openai_s_own_tokenizer(vocabulary):
    from whisper.tokenizer import get_tokenizer
    folder, multilingual, languages = vocabulary
    encoding = _Encoding(folder)
    for language, task in (('en', 'transcribe'), ('de', 'translate'), ('zh', 'transcribe')):
        ours, theirs = whisper_tokenizer(encoding, multilingual, language, task), get_tokenizer(multilingual, num_languages=languages, language=language, task=task)
        for name in ('sot_sequence', 'sot_sequence_including_notimestamps', 'special_tokens', 'non_speech_tokens', 'eot', 'sot', 'sot_prev', 'sot_lm', 'no_speech', 'no_timestamps', 'timestamp_begin', 'transcribe',
                'translate', 'language', 'task'): assert getattr(ours, name) == getattr(theirs, name), name
        assert sorted(ours.all_language_tokens) == sorted(theirs.all_language_tokens) and sorted(ours.all_language_codes) == sorted(theirs.all_language_codes)
        for text in TEXTS:
            tokens = theirs.encode(text)
            assert ours.encode(text) == tokens and ours.decode(tokens) == theirs.decode(tokens) == text
            assert ours.split_to_word_tokens([*tokens, ours.eot]) == theirs.split_to_word_tokens([*tokens, theirs.eot])


def test_any_tokens_are_the_same_text(vocabulary):
    from whisper.tokenizer import get_tokenizer
    folder, multilingual, languages = vocabulary
    ours, theirs = whisper_tokenizer(_Encoding(folder), multilingual, 'en'), get_tokenizer(multilingual, num_languages=languages, language='en')
    numbers = np.random.default_rng(0)
    for top in (ours.eot, ours.timestamp_begin + 1501):
        for _ in range(300):
            tokens = numbers.integers(0, top, 12).tolist()
            assert ours.decode(tokens) == theirs.decode(tokens) and ours.decode_with_timestamps(tokens) == theirs.decode_with_timestamps(tokens)


@pytest.mark.parametrize('language', ['fr', 'en', None])
def test_languages_in_another_order(tmp_path, language):
    source = make(tmp_path/'tiny', languages=('fr', 'en', 'xyz'), no_speech='<|nocaptions|>')
    tokenizer = whisper_tokenizer(_Encoding(source), True, language, 'translate')
    assert [tokenizer.encoding.decode([token]) for token in tokenizer.sot_sequence] == ['<|startoftranscript|>', f"<|{language or 'en'}|>", '<|translate|>']
    assert set(tokenizer.all_language_codes) == {'fr', 'en', 'xyz'} and tokenizer.encoding.decode([tokenizer.no_speech]) == '<|nocaptions|>'


def test_a_tokenizer_without_timestamps(tmp_path):
    source = make(tmp_path/'tiny', timestamps=False)
    tokenizer = whisper_tokenizer(_Encoding(source), True, 'en')
    assert tokenizer.timestamp_begin == tokenizer.no_timestamps + 1 and tokenizer.special_tokens[TIMESTAMPS[-1]] == tokenizer.timestamp_begin + 1500


def test_what_looks_like_a_special_token_in_a_prompt_is_text():
    assert all(token < 658 for token in whisper_tokenizer(_Encoding(DEMO_DIR), True, 'en').encode(' <|en|> <|endoftext|>'))


# ---- transcribing

@pytest.mark.parametrize('beam_size', [1, 5])
def test_three_backends_give_the_same_text(loaded, beam_size):
    for clip in clips():
        heard = {backend: model.transcribe(clip.path, language='en', beam_size=beam_size).text for backend, model in loaded.items()}
        assert len(set(heard.values())) == 1, heard
        if clip.condition in ('clean', 'silence'): assert heard['openai-whisper'] == clip.text


def test_three_backends_give_the_same_text_of_a_long_recording(loaded):
    spoken = [load_audio(clip.path) for clip in clips() if clip.condition == 'clean'][:3]
    audio = np.concatenate([np.pad(each, (0, 30*16_000 - len(each))) for each in spoken])
    heard = {backend: model.transcribe(audio, language='en') for backend, model in loaded.items()}
    assert len({each.text for each in heard.values()}) == 1
    for each in heard.values(): assert [int(segment.start // 30) for segment in each.segments] == [0, 1, 2]


def test_words_come_at_the_same_time(loaded):
    apart = []
    for clip in clips():
        ours, theirs = (words_of(loaded[backend].transcribe(clip.path, language='en', word_timestamps=True)) for backend in ('openai-whisper', 'faster-whisper'))
        assert [word.text for word in ours] == [word.text for word in theirs]
        apart += [abs(one.start - other.start) for one, other in zip(ours, theirs)] + [abs(one.end - other.end) for one, other in zip(ours, theirs)]
    assert len(apart) > 60 and np.mean(np.array(apart) <= 0.1) > 0.95


def test_the_language_is_detected_as_the_others_do(loaded):
    for clip in clips()[:4]: assert {model.transcribe(clip.path).language for model in loaded.values()} == {'en'}


SAYS = SENTENCE.strip()


VOCABULARIES = {'reduced': {}, 'reduced, English only': dict(multilingual=False), 'one language': dict(languages=('de',)), 'OpenAI, English only': dict(vocabulary=51864, seed=1), 'OpenAI, 100 languages': dict(vocabulary=51866, mel_bins=128)}


@pytest.fixture(scope='session')
def talking(tmp_path_factory):
    "A source that says its sentence, by vocabulary; each is made once."
    folder, made = tmp_path_factory.mktemp('talking'), {}
    def get(name):
        if name not in made: made[name] = make(folder/str(len(made)), says=SENTENCE, **VOCABULARIES[name])
        return made[name]
    return get


@pytest.mark.parametrize('name', VOCABULARIES)
def test_every_kind_of_vocabulary(talking, name):
    source = talking(name)
    models = [load(path) for path in (source, convert(source).path, convert(source, format='openai').path)]
    language = 'de' if name == 'one language' else 'en'
    assert {model.transcribe(default_clip().path, language=language, beam_size=1).text for model in models} == {SAYS}
    assert len({model.languages for model in models}) == 1
    assert models[-1].transcribe(default_clip().path).text == SAYS  # the language not named
    if 'English' not in name: assert models[-1].transcribe(default_clip().path, language=language, task='translate').text == SAYS


def test_plain_openai_whisper_runs_it(talking):
    "With one of OpenAI's vocabularies, nothing of this package is needed."
    path = convert(talking('OpenAI, 100 languages'), format='openai').path
    program = f"import whisper, numpy; model = whisper.load_model({str(path/'model.pt')!r}); print(model.transcribe(numpy.zeros(16000, 'float32'), language='en', temperature=0, fp16=False, no_speech_threshold=None)['text'])"
    assert subprocess.run([sys.executable, '-c', program], capture_output=True, text=True).stdout.strip() == SAYS


def test_alignment_heads_are_set(loaded, openai):
    assert loaded['openai-whisper'].engine.model.alignment_heads.indices().T.tolist() == read(DEMO_DIR/'generation_config.json')['alignment_heads']
    edit(openai/'generation_config.json', alignment_heads=[[0, 3], [1, 2]])
    assert load(openai).engine.model.alignment_heads.indices().T.tolist() == [[0, 3], [1, 2]]


def test_the_heads_are_written_as_openai_s_table_has_them():
    import whisper
    def grid(dump): return gzip.decompress(base64.b85decode(dump))
    for name, dump in whisper._ALIGNMENT_HEADS.items():
        row = CHECKPOINTS['openai/whisper-' + {'large-v1': 'large', 'large': 'large-v3', 'turbo': 'large-v3-turbo'}.get(name, name)]
        assert grid(alignment_dump(row.alignment_heads, row.decoder_layers, row.attention_heads)) == grid(dump), name


def tokenizers(): return [import_module(f'whisper.{name}').get_tokenizer for name in ('transcribe', 'decoding')]


def test_openai_whisper_is_left_as_it_was(loaded, monkeypatch):
    from whisper.tokenizer import get_tokenizer
    model = loaded['openai-whisper']
    model.transcribe(default_clip().path, language='en')
    assert tokenizers() == [get_tokenizer]*2
    monkeypatch.setattr(type(model.engine.model), 'decode', lambda *_: 1/0)
    with pytest.raises(CheckError, match='could not transcribe'): model.transcribe(default_clip().path, language='en')
    assert tokenizers() == [get_tokenizer]*2


def test_two_models_in_two_threads(loaded, talking):
    "Each keeps its own tokenizer."
    other = load(convert(talking('reduced'), format='openai').path)
    heard = {}
    def listen(name, model): heard[name] = {model.transcribe(default_clip().path, language='en').text for _ in range(3)}
    threads = [threading.Thread(target=listen, args=each) for each in (('demo', loaded['openai-whisper']), ('tiny', other))]
    for each in threads: each.start()
    for each in threads: each.join()
    assert heard == dict(demo={default_clip().text}, tiny={SAYS})


def test_it_passes_the_offline_test(demos):
    found = offline_test(demos['openai-whisper'], 'openai-whisper')
    assert found.ok and found.text == default_clip().text and not found.attempts and found.denied_by and found.peak_memory < memory_needed(demos['openai-whisper'], pick_backend(demos['openai-whisper']))


def test_without_the_library_it_says_what_to_install(demos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'whisper', None)
    with pytest.raises(StepError, match='openai-whisper is not installed') as caught: load(demos['openai-whisper'])
    assert "pip install '.[openai-whisper]'" in caught.value.advice


def test_the_wrong_backend_is_refused_with_the_way_out(demos):
    with pytest.raises(RequestError) as caught: load(demos['transformers'], 'openai-whisper')
    assert '--format openai' in caught.value.advice
    with pytest.raises(RequestError) as caught: load(demos['openai-whisper'], 'faster-whisper')
    assert 'use the backend openai-whisper' in caught.value.advice
