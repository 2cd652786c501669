"""Where a model looks: maps over the time and space of clips, drawn, and tested by covering.

In: a trained model and clips. Out: `Map`s (`maps`), pictures of them (`film_strip`, `overlay`,
`colour_scale`, `sheet`), and by how much the score falls where they mark most (`covering`).
"""

from hybrid_video.attribution.drawing import colour_scale as colour_scale
from hybrid_video.attribution.drawing import film_strip as film_strip
from hybrid_video.attribution.drawing import overlay as overlay
from hybrid_video.attribution.drawing import sheet as sheet
from hybrid_video.attribution.maps import maps as maps
from hybrid_video.models.relevance import Map as Map
