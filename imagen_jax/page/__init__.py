"""The page of `imagen demo`: a cascade in the browser, on this machine and without the internet.

form.py      what the page asks for -> arguments of Cascade.sample_each, or an error
jobs.py      one job at a time, its progress and its pictures
drawing.py   pictures for the browser, and masks from strokes of a brush
guard.py     which requests are answered at all
controls.py, canvas.py, results.py, layout.py   the page itself, of NiceGUI
server.py    serves it
"""
