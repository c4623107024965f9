from bsconv_nas.report.operators import operators_figure, operators_info
from bsconv_nas.space.dimensions import make_table
from bsconv_nas.space.files import Choices

OPTIONS = ("regular", "dsc", "bsconv_u", "bsconv_s:p=1/8", "bsconv_s")


def test_rows_are_the_front_cheapest_first_and_dropped_blocks_are_blank(writer, network):
    writer.trial("search", network("bsconv_u"), 0.80)
    writer.trial("search", network("bsconv_s:p=1/8", depth_layer1=1, width_layer3=0.5), 0.70)
    writer.trial("search", network("bsconv_u", conv_layer3_2_conv2="regular"), 0.60)
    info = operators_info(writer.view())
    view = writer.view()
    assert info.keys == (view.trials["key"][1], view.trials["key"][0])
    assert info.options == OPTIONS
    assert info.choices == ((3, 3) + (None,) * 4 + (3,) * 12, (2,) * 18)
    assert info.rows[1].endswith(" M · 80.00 %")


def test_widths_and_depths_stand_beside(writer, network):
    writer.trial("search", network("bsconv_u", depth_layer1=1, width_layer3=0.5), 0.70)
    channels, blocks = operators_info(writer.view()).panels
    assert (channels.columns, channels.values) == (("layer1", "layer2", "layer3"), ((16, 32, 32),))
    assert (blocks.values, blocks.shares) == (((1, 2, 2),), ((1 / 3, 1.0, 1.0),))


def test_the_legend_names_the_options_that_occur_in_their_colours(writer, network):
    writer.trial("search", network("bsconv_u", conv_layer3_0_conv2="bsconv_s"), 0.70)
    figure = operators_figure(operators_info(writer.view()))
    legend = {trace.name: trace.marker.color for trace in figure.data if trace.type == "scatter"}
    assert legend == {"bsconv_u": "#009e73", "bsconv_s": "#dba1c1"}


def test_without_a_front_there_is_nothing_to_show(writer, network):
    writer.trial("search", network("bsconv_u"), 0.80, state="stopped")
    assert operators_info(writer.view()) is None


def test_a_space_of_widths_alone_has_no_operators(table, writer):
    only = make_table(table.graph, Choices(exempt=("*.conv1", "*.conv2")))
    writer.table, writer.model = only, type(writer.model)(only)
    writer.trial("search", only.architecture([0] * len(only.dimensions)), 0.5)
    info = operators_info(writer.view())
    assert (info.places, info.choices) == ((), ((),))
    assert operators_figure(info).data
