from bsconv_nas.report.networks import depths, operators, places, stages, uniform, widths


def test_places_stand_in_network_order(table):
    names = [table.dimensions[i].name for i in places(table)]
    assert len(names) == 18
    assert (names[0], names[-1]) == ("conv.layer1.0.conv1", "conv.layer3.2.conv2")


def test_dropped_layers_have_no_operator(table, network):
    indices = network("bsconv_u", depth_layer1=1).indices
    assert operators(table, indices) == ["bsconv_u"] * 2 + [None] * 4 + ["bsconv_u"] * 12


def test_stages_count_the_kept_layers_of_each_option(table, network):
    indices = network("regular", depth_layer1=0, conv_layer2_0_conv1="dsc").indices
    assert stages(table, indices) == {"layer2": {"dsc": 1, "regular": 5}, "layer3": {"regular": 6}}


def test_widths_are_channels_and_depths_blocks(table, network):
    indices = network(width_layer2=0.75, depth_layer3=1).indices
    assert widths(table, indices) == {"width.layer1": 16, "width.layer2": 24, "width.layer3": 64}
    assert depths(table, indices) == {"depth.layer1": 3, "depth.layer2": 2, "depth.layer3": 1}


def test_a_uniform_network_is_named_by_its_decomposition(table, network):
    assert [uniform(table, network(o).indices) for o in ("dsc", "bsconv_s:p=1/8")] == ["dsc", "bsconv_s"]
