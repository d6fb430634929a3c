"""Draws the README's pictures of the model and of the scenes into this folder: `python snapshots/draw.py RUN`

RUN is a folder that `caption_train --data shapes` wrote (`make train` writes runs/shapes)."""
import shutil, sys
from pathlib import Path

from caption_fastai.all import *

here = Path(__file__).parent


def save(fig, name):
    fig.savefig(here/name, dpi=90, bbox_inches='tight'); plt.close(fig)


def draw_model():
    "What flows where, with the shapes of a picture of 224 pixels through MobileNetV2"
    fig,ax = plt.subplots(figsize=(11, 3.6)); ax.axis('off'); ax.set(xlim=(0, 11), ylim=(0, 3.6))
    def box(x, y, w, h, text, color): ax.add_patch(plt.Rectangle((x, y), w, h, fc=color, ec='#444')); ax.text(x + w/2, y + h/2, text, ha='center', va='center', fontsize=10)
    def arrow(a, b, text='', dy=.13, **kw):
        ax.annotate('', b, a, arrowprops=dict(arrowstyle='->', color='#444', **kw))
        ax.text((a[0] + b[0])/2, (a[1] + b[1])/2 + dy, text, ha='center', fontsize=8.5, color='#444')
    box(0, 1.7, 1.45, 1.1, 'picture\n3 x 224 x 224', '#f3f3f3')
    box(2, 1.7, 1.75, 1.1, 'Encoder\na CNN cut\nbefore its pool', '#cfe3f7')
    box(4.85, 1.7, 1.85, 1.1, 'AdditiveAttention\neq. 4, 5, 13', '#fde2b8')
    box(8, 1.7, 1.5, 1.1, 'LSTM cell\neq. 1 to 3', '#d5ecd0')
    box(8, .2, 1.5, .7, 'Embedding', '#d5ecd0')
    box(10, 1.95, .9, .6, 'words', '#f3f3f3')
    arrow((1.45, 2.25), (2, 2.25)); arrow((3.75, 2.25), (4.85, 2.25), 'features a\n49 x 1280', .1)
    arrow((6.7, 2.25), (8, 2.25), 'context z,\ngated', .1); arrow((9.5, 2.25), (10, 2.25))
    arrow((8.75, .9), (8.75, 1.7)); arrow((10.45, 1.95), (9.5, .55), connectionstyle='arc3,rad=-.3'); ax.text(10.3, .75, 'last word', fontsize=8.5, color='#444')
    arrow((8.75, 2.8), (5.85, 2.8), 'state h', .62, connectionstyle='arc3,rad=.35')
    arrow((5.85, 1.7), (5.85, .95)); ax.text(5.85, .7, 'alpha: where it looks\n49 weights that sum to 1', ha='center', va='center', fontsize=8.5, color='#444')
    save(fig, 'model.png')


def main(run):
    run,captioner = Path(run),Captioner.load(run)
    draw_model()
    scenes = read_scenes(run/'scenes')
    pics = [run/'scenes'/'Images'/name for name in (run/'scenes'/'Flickr_8k.testImages.txt').read_text().split()[:40]]
    three = [p for p in pics if len(scenes[p.name].objs) == 3]
    save(plot_beam_tree(captioner, three[0], n_dropped=2), 'beam_search.png')
    caption = captioner.caption(three[1])
    save(caption.plot_attention(), 'attention.png')
    save(plot_attributions(captioner, caption, next(w for w in caption.words if w in SHAPES)), 'attributions.png')
    for name in ('lr_find', 'training'): shutil.copy(run/f'{name}.png', here/f'{name}.png')


if __name__ == '__main__': main(sys.argv[1])
