"""The page of `imagen demo`: a cascade in the browser, on this machine and without the internet.

    server.py    serves it
    guard.py     which requests are answered at all
    connections.py  how long and how fast requests may come
    form.py      what the page asks for -> a Request, or an error; limits.py: how much may be asked
    uploads.py   images that are uploaded, read one at a time
    jobs.py      one job at a time, its progress and its images
    process.py   the process that samples, started and spoken to; messages.py: in which words
    sampling.py  what it does: jobs, and images for the browser
    drawing.py   images for the browser, and masks from strokes of a brush
    log.py       what the server says, in lines

and, of NiceGUI,

    layout.py    the page of a tab
    controls.py  its left half: fields, and canvas.py, the image that is edited
    results.py   its right half: images as they are made, and image.py, all about one of them
"""
