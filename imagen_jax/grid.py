"""A labelled grid of pictures."""
import numpy as np
from PIL import Image
def labelled_grid(images, labels, columns, scale):
    ims=[np.asarray(Image.fromarray(i).resize((i.shape[1]*scale,i.shape[0]*scale),0)) for i in images]
    rows=[np.concatenate(ims[i:i+columns],1) for i in range(0,len(ims),columns)]
    return Image.fromarray(np.concatenate(rows,0))
