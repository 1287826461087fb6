"""Tiny random Whisper checkpoints of every shape people bring, made on the fly in a fraction of a second."""
import json
from pathlib import Path

from whisper_nb.files import MANIFEST_NAME, build_manifest
from whisper_nb.layout import TIMESTAMPS

LANGUAGES = ('en', 'de', 'fr')
MERGES = [('Ġ', 't'), ('h', 'e'), ('Ġt', 'he')]


def _alphabet():
    "The 256 letters of byte-level BPE."
    from tokenizers import pre_tokenizers
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def token_lists(multilingual=True, timestamps=True, languages=LANGUAGES, no_speech='<|nospeech|>'):
    "Text tokens, and the special tokens that follow them, in Whisper's order."
    text = _alphabet() + [''.join(pair) for pair in MERGES] + [''] * multilingual  # the empty token marks a multilingual model
    special = ['<|endoftext|>', '<|startoftranscript|>', *(f'<|{name}|>' for name in languages), '<|translate|>', '<|transcribe|>',
        '<|startoflm|>', '<|startofprev|>', no_speech, '<|notimestamps|>']
    return text, special + list(TIMESTAMPS if timestamps else ())


def write_tokenizer(directory, text, special, kind='json'):
    "kind: 'json' (tokenizer.json), 'pieces' (vocab.json, merges.txt, added_tokens.json) or 'both'."
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    vocabulary = {token: place for place, token in enumerate(text)}
    if kind in ('json', 'both'):
        tokenizer = Tokenizer(models.BPE(vocabulary, MERGES))
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in TIMESTAMPS) for token in special])
        tokenizer.save(str(directory/'tokenizer.json'))
    if kind in ('pieces', 'both'):
        dump(directory/'vocab.json', vocabulary)
        dump(directory/'added_tokens.json', {token: len(text) + place for place, token in enumerate(special)})
        (directory/'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{one} {other}\n' for one, other in MERGES), encoding='utf-8')


def dump(path, value): Path(path).write_text(json.dumps(value), encoding='utf-8')


def edit(path, **changed):
    "Change fields of a JSON file; None removes one."
    value = json.loads(Path(path).read_text(encoding='utf-8')) | changed
    dump(path, {name: each for name, each in value.items() if each is not None})


def write_features(directory, mel_bins, kind='preprocessor'):
    "kind: 'preprocessor' (preprocessor_config.json), 'processor' (as transformers 5 saves it) or None."
    features = dict(feature_extractor_type='WhisperFeatureExtractor', feature_size=mel_bins, sampling_rate=16000, hop_length=160, chunk_length=30, n_fft=400)
    if kind == 'preprocessor': dump(directory/'preprocessor_config.json', features)
    if kind == 'processor': dump(directory/'processor_config.json', dict(processor_class='WhisperProcessor', feature_extractor=features))


def make_checkpoint(directory, mel_bins=80, dtype='float16', tied=True, shards=False, tokenizer='json', features='preprocessor', generation=True,
        multilingual=True, timestamps=True, encoder_layers=2, decoder_layers=2, width=32, heads=2, seed=0, manifest=True, **token_options):
    "Write a random Whisper in the Transformers format and return its directory."
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration
    from transformers.utils import logging
    logging.disable_progress_bar()
    directory = Path(directory)
    directory.mkdir(parents=True)
    text, special = token_lists(multilingual, timestamps, **token_options)
    rows = len(text) + len(special) + (0 if timestamps else len(TIMESTAMPS))
    place = {token: number for number, token in enumerate(text + special)}
    config = WhisperConfig(vocab_size=rows, num_mel_bins=mel_bins, d_model=width, encoder_layers=encoder_layers, decoder_layers=decoder_layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=2*width, decoder_ffn_dim=2*width, tie_word_embeddings=tied,
        pad_token_id=place['<|endoftext|>'], bos_token_id=place['<|endoftext|>'], eos_token_id=place['<|endoftext|>'], decoder_start_token_id=place['<|startoftranscript|>'],
        begin_suppress_tokens=None, suppress_tokens=None)
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    if not tied: torch.nn.init.normal_(model.proj_out.weight, std=0.02)
    model.to(getattr(torch, dtype)).save_pretrained(directory, **(dict(max_shard_size='60KB') if shards else {}))
    (directory/'generation_config.json').unlink()
    if generation: write_generation(directory, place, [[0, 1], [decoder_layers - 1, 0]])
    write_tokenizer(directory, text, special, tokenizer)
    write_features(directory, mel_bins, features)
    (directory/'README.md').write_text('---\nlicense: mit\n---\nA random Whisper for tests.\n')
    if manifest: seal(directory)
    return directory


def write_generation(directory, place, alignment_heads):
    "generation_config.json with heads, languages and tasks, as openai's checkpoints have it."
    languages = {token: number for token, number in place.items() if token[2:-2] in LANGUAGES}
    dump(directory/'generation_config.json', dict(alignment_heads=alignment_heads, lang_to_id=languages, no_timestamps_token_id=place['<|notimestamps|>'], is_multilingual=True,
        task_to_id=dict(translate=place['<|translate|>'], transcribe=place['<|transcribe|>']), suppress_tokens=[1, 2, 7], begin_suppress_tokens=[220], max_length=448,
        decoder_start_token_id=place['<|startoftranscript|>'], eos_token_id=place['<|endoftext|>'], pad_token_id=place['<|endoftext|>'], bos_token_id=place['<|endoftext|>']))


def seal(directory, **source):
    "Write a manifest of what is in the directory now."
    directory = Path(directory)
    (directory/MANIFEST_NAME).unlink(missing_ok=True)
    converted = (directory/'model.bin').exists()
    made = build_manifest(directory, directory.name, 'ctranslate2' if converted else 'transformers', source or dict(kind='local', name=directory.name))
    (directory/MANIFEST_NAME).write_text(made.to_json())
    return made
