"""A ROS 2 node that finds loops: it publishes which earlier image shows the place of the latest one.

    python3 ros_node.py --ros-args -r image:=/camera/image_raw -p max_distance:=0.9 -p model:=NAME_OR_FILE

Subscribes to `image` (sensor_msgs/Image); publishes on `loop` (std_msgs/String) JSON such as {"stamp": 93.2,
"earlier_stamp": 12.4, "distance": 0.71}. Images that arrive while the model is busy are dropped.
"""

import json

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from selavprplusplus import Loop, PlaceRecognizer
from sensor_msgs.msg import Image
from std_msgs.msg import String

CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}


class LoopNode(Node):
    def __init__(self) -> None:
        super().__init__("place_recognition")
        defaults = {"model": "SelaVPRplusplus_base_rerank", "device": "cpu", "max_distance": 0.9, "min_gap": 50}
        defaults["suppress"] = 25  # of loops closer than this at both ends, the first one is published
        self.settings = {name: self.declare_parameter(name, value).value for name, value in defaults.items()}
        self.recognizer = PlaceRecognizer(self.settings["model"], device=self.settings["device"])
        self.times: list[float] = []
        self.published: list[Loop] = []
        self.publisher = self.create_publisher(String, "loop", 10)
        latest_image = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        self.create_subscription(Image, "image", self.on_image, latest_image)

    def on_image(self, message: Image) -> None:
        channels = CHANNELS.get(message.encoding)
        if channels is None:
            self.get_logger().error(f"Images of {message.encoding} are not read. Expected {', '.join(CHANNELS)}.")
            return
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)  # may be padded
        pixels = rows[:, : message.width * channels].reshape(message.height, message.width, channels)
        pixels = pixels.repeat(3 // channels, axis=2)
        stamp = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
        (latest,) = self.recognizer.add(pixels, times=stamp, bgr=message.encoding == "bgr8")
        self.times.append(stamp)
        gap, distance = self.settings["min_gap"], self.settings["max_distance"]
        for loop in self.recognizer.find_loops(latest, max_distance=distance, min_gap=gap):
            steps = (max(abs(loop.id - o.id), abs(loop.earlier - o.earlier)) for o in self.published)
            if all(step >= self.settings["suppress"] for step in steps):
                self.published.append(loop)
                found = {"stamp": stamp, "earlier_stamp": self.times[loop.earlier], "distance": round(loop.distance, 4)}
                self.publisher.publish(String(data=json.dumps(found)))


if __name__ == "__main__":
    rclpy.init()
    rclpy.spin(LoopNode())
