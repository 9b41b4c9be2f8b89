# ruff: noqa: RUF001 - Chinese has marks of its own
"""The words of figures and of the report page, in English and Chinese.

Tests: ``tests/test_plot.py``, ``tests/test_report.py``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from fastsnn.look import check_language

_language: ContextVar[str] = ContextVar("language", default="en")

CHINESE = {
    # titles and samples
    "test sample {index}": "测试样本 {index}",
    "validation sample {index}": "验证样本 {index}",
    " ({why})": "（{why}）",
    "{which}: {more}": "{which}：{more}",
    "closest right answer": "判对的样本中最接近判错的一个",
    "median accuracy": "准确率居中的一个",
    "the first": "第一个",
    "label {label}, predicted {predicted}": "标签 {label}，预测 {predicted}",
    "{share:.1%} right": "判对 {share:.1%}",
    "{share:.1%} of its steps right": "{share:.1%} 的时间步判对",
    "Training curves of {count} runs": "{count} 次训练的曲线",
    "no epoch finished yet": "尚未完成任何一轮",
    "{part} accuracy {accuracy:.2%} after epoch {epoch}": "第 {epoch} 轮后{part}准确率 {accuracy:.2%}",
    " (here {steps} steps of the next are done)": "（下一轮已训练 {steps} 步）",
    "label": "标签",
    "predicted": "预测",
    "test": "测试",
    "validation": "验证",
    # curves
    "loss": "损失",
    "accuracy": "准确率",
    "Loss": "损失",
    "Accuracy": "准确率",
    "epoch": "轮次",
    "% of samples": "样本的百分比",
    " or ": "或",
    "{part}, after the epoch": "{part}集，每轮之后",
    "training, mean over the epoch": "训练集，整轮平均",
    # answers
    "Firing rates": "发放率",
    "Scores": "各类得分",
    "spikes per time step": "每个时间步的脉冲数",
    "largest membrane potential": "最大膜电位",
    "last membrane potential": "最后的膜电位",
    "mean membrane potential": "平均膜电位",
    "class": "类别",
    "time": "时间",
    "channel": "通道",
    "input": "输入",
    "output": "输出",
    "Labels and answers over time": "标签与预测随时间的变化",
    "predicted class": "预测类别",
    "accuracy of the class": "该类准确率",
    "{accuracy:.2%} of {count:,} test samples": "{count:,} 个测试样本的 {accuracy:.2%}",
    "{accuracy:.2%} of {count:,} validation samples": "{count:,} 个验证样本的 {accuracy:.2%}",
    "{accuracy:.2%} of {count:,} labelled steps": "{count:,} 个有标签的时间步的 {accuracy:.2%}",
    "Confusion matrix: {total} are right": "混淆矩阵：{total}判对",
    "share of the label's samples (%)": "占该标签样本的百分比",
    "{count:,} {kind} samples": "{count:,} 个{kind}样本",
    "No mistakes among {where}": "{where}中没有判错的",
    "sample {index}": "样本 {index}",
    "The {shown} worst of {where}": "{where}中最差的 {shown} 个",
    "{label} taken for {taken}": "{label} 判为 {taken}",
    "lead {lead:.2f}": "领先 {lead:.2f}",
    "{lead:+.2f}, h {potential:+.1f}": "{lead:+.2f}，h {potential:+.1f}",
    "The {shown} clearest of {wrong:,} mistakes among {where}": "{where}中判错 {wrong:,} 个，最明显的 {shown} 个",
    "rate and mean potential h of the wrong class above the label's": "判错的类比标签高出的发放率与平均膜电位 h",
    "lead: score of the wrong class above the label's": "领先：判错的类比标签的得分高多少",
    # neurons
    "hidden layer {i}": "隐藏层 {i}",
    "{size} neurons": "{size} 个神经元",
    "input\n{count} channels": "输入\n{count} 个通道",
    "input\n{count} pixels that\nare not black": "输入\n{count} 个\n非黑像素",
    "input\n{count} pixels\nwith events": "输入\n{count} 个\n有事件的像素",
    "1 spike": "1 个脉冲",
    "{count:,} spikes": "{count:,} 个脉冲",
    "values": "数值",
    "Spikes of the input and of every layer": "输入与各层的脉冲",
    "time step": "时间步",
    "Membrane potential of the output neurons": "输出神经元的膜电位",
    "Membrane potential of the output neurons; dots are spikes": "输出神经元的膜电位（圆点为脉冲）",
    "output neuron": "输出神经元",
    "potential": "膜电位",
    "potential h less the threshold, before firing": "发放前膜电位 h 减去阈值",
    "potential h before firing (white: threshold {threshold:g})": "发放前膜电位 h（白色：阈值 {threshold:g}）",
    "membrane potential": "膜电位",
    "Output neurons": "输出神经元",
    "The {shown} of {count} output neurons with the highest scores": "{count} 个输出神经元中得分最高的 {shown} 个",
    ": threshold dotted, a drop is the reset, spikes on the upper edge": "：点线为阈值，骤降为重置，上缘为脉冲",
    "down to {value:.1f}": "低至 {value:.1f}",
    "Events in each part of the time steps": "各时间段的事件",
    "Events in each part of the time steps (blue: off, orange: on)": "各时间段的事件（蓝：变暗，橙：变亮）",
    # weights
    "Input weights of layer 1": "第 1 层的输入权重",
    "input channel": "输入通道",
    "neuron": "神经元",
    "weight (current per input spike)": "权重（每个输入脉冲的电流）",
    "Input weights of each class": "各类的输入权重",
    "Kernels of the first convolution": "第一个卷积的卷积核",
    ": the {shown} largest of {count}": "：{count} 个中最大的 {shown} 个",
    "Input weights of layer 1: the {shown} of {count} neurons with the largest": (
        "第 1 层的输入权重：{count} 个神经元中权重最大的 {shown} 个"
    ),
    # one neuron
    "input\ncurrent": "输入\n电流",
    "membrane\npotential": "膜电位",
    "spikes": "脉冲",
    "threshold": "阈值",
    "{neuron}: 1 spike in {T} time steps": "{neuron}：{T} 个时间步内 1 个脉冲",
    "{neuron}: {count} spikes in {T} time steps": "{neuron}：{T} 个时间步内 {count} 个脉冲",
    "{neuron} does not fire: its output is its potential": "{neuron} 不发放脉冲：输出即膜电位",
    "state {name}": "状态 {name}",
    # the report page
    "Network": "网络",
    "Data": "数据",
    "Step and device": "后端与设备",
    "Machine": "机器",
    "not recorded": "未记录",
    "in Triton's interpreter": "在 Triton 解释器中",
    "{count} thread": "{count} 个线程",
    "{count} threads": "{count} 个线程",
    "{count:,} train": "{count:,} 个训练样本",
    "{count:,} validation": "{count:,} 个验证样本",
    "{count:,} test": "{count:,} 个测试样本",
    "One sample through time": "一个样本随时间的变化",
    "Move the slider, press an arrow key on it, or drag across the raster.": (
        "拖动滑块、在滑块上按方向键，或在脉冲图上拖动。"
    ),
    "Raster: a mark where a neuron of the input or of a layer spikes at a time step": (
        "脉冲图：输入或某层的神经元在某时间步发放处有一个标记"
    ),
    "input spikes at this step": "此时间步的输入脉冲",
    "their mean so far": "到此为止的平均",
    "potential h": "膜电位 h",
    "spikes so far": "到此为止的脉冲数",
    "h is the membrane potential before firing.": "h 为发放前的膜电位。",
    "A neuron fires at {threshold:g} or more.": "达到 {threshold:g} 时发放。",
    "The threshold moves.": "阈值随时间变化。",
    "The raster needs JavaScript; the figures below do not.": "脉冲图需要 JavaScript；下面的图不需要。",
    "Training": "训练",
    "What it learnt": "学到了什么",
    "The sample in figures": "该样本的图",
    "Accuracy of each class": "每类的准确率",
    "labels": "标签数",
    "right": "判对",
    "Settings": "设置",
    "Options": "选项",
    "Environment": "环境",
    "The same run again:": "再训练一次：",
    "with the run folder's file.": "用该文件夹中的文件。",
    "A run of fastsnn.fit: the folder holds neither its network nor its data.": (
        "由 fastsnn.fit 训练：文件夹中没有网络和数据。"
    ),
    "Made by fastsnn {version}": "由 fastsnn {version} 生成",
    "{count} channels": "{count} 个通道",
    "{count} lit pixels": "{count} 个非黑像素",
    "{count} pixels with events": "{count} 个有事件的像素",
    "fires": "发放",
    "step {t} of {last}": "第 {t} 步，共 {last} 步",
    "Play": "播放",
    "Pause": "暂停",
    "none": "无",
    "yes": "是",
    "no": "否",
    "curves": "曲线",
}
"""What is said in English -> the same in Chinese; in both, names in braces stand for values."""


def say(text: str, **values: Any) -> str:
    """``text``, one of those above, in the language in force, with values for its names in braces."""
    template = text if _language.get() == "en" else CHINESE[text]
    return template.format(**values) if values else template


@contextmanager
def language(name: str) -> Iterator[None]:
    """Speak en or zh; raises ValueError for another language."""
    check_language(name)
    token = _language.set(name)
    try:
        yield
    finally:
        _language.reset(token)


def current_language() -> str:
    """en or zh."""
    return _language.get()
