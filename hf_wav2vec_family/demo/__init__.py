"""The models in a browser: text whose words can be clicked, codes over the spectrogram, features of live speech.

`python -m hf_wav2vec_family.demo --model FOLDER` opens it; `--space FOLDER` writes one for the Hub.
"""
